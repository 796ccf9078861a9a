"""Games under prerequisites: known answers, axioms, and an independent implementation as oracle."""

from itertools import combinations, pairwise, permutations

import numpy as np
import pytest

from ablate.attribution.indices import (
    INDICES,
    index_weights,
    interaction_weights,
    total_weights,
    undefined_reason,
)
from ablate.attribution.lattice import dividends, lattice, model_matrix, order_spectrum, term_orders

EXACT = {"rtol": 0, "atol": 1e-12}
LOSS = lattice(["mla", "moe", "aux-free", "mtp", "fp8", "distill"], {"aux-free": ["moe"]})


def game(parts, worth):
    """Values in the order of the cells, from a function of the set of names."""
    return np.array([worth(set(parts.names(cell))) for cell in parts.cells], dtype=float)


def value(parts, index, worth):
    return index_weights(parts, index) @ game(parts, worth)


def random_game(parts, seed):
    values = np.random.default_rng(seed).standard_normal(len(parts.cells))
    values[0] = 0
    return values


def by_orders(parts, values, blocks):
    """The definition itself: mean marginal over the admissible orders, by listing them."""
    n = len(parts.components)
    lookup = dict(zip(parts.cells, values, strict=True))
    block_of = {i: b for b, mask in enumerate(blocks) for i in range(n) if mask >> i & 1}
    totals, count = np.zeros(n), 0
    for order in permutations(range(n)):
        switches = sum(block_of[a] != block_of[b] for a, b in pairwise(order))
        before = [sum(1 << j for j in order[:at]) for at in range(n)]
        if switches != len(blocks) - 1 or any(parts.needs[i] & ~before[at] for at, i in enumerate(order)):
            continue
        count += 1
        for at, i in enumerate(order):
            totals[i] += lookup[before[at] | 1 << i] - lookup[before[at]]
    return totals / count


@pytest.mark.parametrize("term", range(1, 32))
def test_unanimity_games(term):
    parts = lattice("abcde")
    members = [i for i in range(5) if term >> i & 1]
    values = np.array([float(cell & term == term) for cell in parts.cells])
    expected = np.array([1 / len(members) if i in members else 0.0 for i in range(5)])
    np.testing.assert_allclose(index_weights(parts, "shapley") @ values, expected, **EXACT)
    pairs = interaction_weights(parts)
    for i in range(5):
        for j in range(i + 1, 5):
            pair = (parts.components[i], parts.components[j])
            inside = i in members and j in members
            size = len(members)
            np.testing.assert_allclose(pairs[pair] @ values, 2.0 ** (2 - size) if inside else 0, **EXACT)


def test_glove_game():
    parts = lattice(["left", "right1", "right2"])
    got = value(parts, "shapley", lambda s: float("left" in s and len(s) > 1))
    np.testing.assert_allclose(got, [2 / 3, 1 / 6, 1 / 6], **EXACT)


def test_airport_game():
    cost = {"a": 1, "b": 2, "c": 3}
    got = value(lattice("abc"), "shapley", lambda s: max((cost[i] for i in s), default=0))
    np.testing.assert_allclose(got, [1 / 3, 5 / 6, 11 / 6], **EXACT)


def test_voting_game():
    weight = {"a": 10, "b": 20, "c": 30, "d": 40}
    parts = lattice("abcd")
    wins = game(parts, lambda s: float(sum(weight[i] for i in s) > 50))
    np.testing.assert_allclose(index_weights(parts, "shapley") @ wins, np.array([2, 6, 6, 10]) / 24, **EXACT)
    np.testing.assert_allclose(index_weights(parts, "banzhaf") @ wins, np.array([1, 3, 3, 5]) / 8, **EXACT)


def test_talmudic_inheritance_of_ibn_ezra():
    claim = {"reuben": 120, "simeon": 60, "levi": 40, "judah": 30}
    got = value(lattice(list(claim)), "shapley", lambda s: max((claim[i] for i in s), default=0))
    np.testing.assert_allclose(got, [80 + 5 / 6, 20 + 5 / 6, 10 + 5 / 6, 7.5], **EXACT)


def test_owen_value_of_a_cost_game_with_one_union():
    cost = {"": 0, "1": 1, "2": 1, "3": 2, "12": 1, "13": 2, "23": 2, "123": 2}
    parts = lattice("123", blocks=["12"])
    np.testing.assert_allclose(value(parts, "owen", lambda s: cost["".join(sorted(s))]), [0.25, 0.25, 1.5], **EXACT)


PRECEDENCE = lattice("MBCA", {"B": "M", "C": "M"})


@pytest.mark.parametrize(
    ("term", "faigle_kern", "owen", "permission"),
    [
        ("MB", [0, 1, 0, 0], [0, 1, 0, 0], [0.5, 0.5, 0, 0]),
        ("MA", [0.25, 0, 0, 0.75], [0.5, 0, 0, 0.5], [0.5, 0, 0, 0.5]),
        ("MBA", [0, 0.625, 0, 0.375], [0, 0.5, 0, 0.5], [1 / 3, 1 / 3, 0, 1 / 3]),
        ("MBCA", [0, 0.375, 0.375, 0.25], [0, 0.25, 0.25, 0.5], [0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_unanimity_games_under_precedence(term, faigle_kern, owen, permission):
    for index, expected in (("faigle-kern", faigle_kern), ("owen", owen), ("permission", permission)):
        np.testing.assert_allclose(value(PRECEDENCE, index, lambda s: float(set(term) <= s)), expected, **EXACT)


@pytest.mark.parametrize("index", ["owen", "faigle-kern"])
@pytest.mark.parametrize(
    "parts",
    [
        LOSS,
        PRECEDENCE,
        lattice("abcd", {"d": "bc", "b": "a", "c": "a"}),
        lattice("abcde", {"b": "a", "e": "d"}, blocks=["ac"]),
    ],
)
def test_ordered_values_equal_the_average_over_listed_orders(index, parts):
    values = random_game(parts, 3)
    blocks = parts.blocks if index == "owen" else (parts.full,)
    np.testing.assert_allclose(index_weights(parts, index) @ values, by_orders(parts, values, blocks), **EXACT)


@pytest.mark.parametrize("parts", [LOSS, PRECEDENCE, lattice("abcd")])
def test_efficient_values_add_up_to_the_total(parts):
    values = random_game(parts, 1)
    for index in ("owen", "faigle-kern", "permission", "shapley"):
        if undefined_reason(parts, index) is None:
            np.testing.assert_allclose((index_weights(parts, index) @ values).sum(), values[-1], **EXACT)
    np.testing.assert_allclose(total_weights(parts) @ values, values[-1], **EXACT)


def test_in_two_way_games_shapley_banzhaf_and_the_mean_of_first_and_last_agree():
    parts = lattice("abcdef")
    terms = model_matrix(parts, 2)
    values = terms @ np.random.default_rng(5).standard_normal(terms.shape[1])
    middle = (index_weights(parts, "first") + index_weights(parts, "last")) @ values / 2
    np.testing.assert_allclose(index_weights(parts, "shapley") @ values, middle, **EXACT)
    np.testing.assert_allclose(index_weights(parts, "banzhaf") @ values, middle, **EXACT)
    np.testing.assert_allclose(index_weights(parts, "owen") @ values, middle, **EXACT)


def test_splitting_one_block_leaves_the_owen_values_of_other_blocks_alone():
    whole = lattice(["a", "b", "moe"])
    split = lattice(["a", "b", "moe1", "moe2"], {"moe2": ["moe1"]})
    values = random_game(whole, 11)
    lookup = dict(zip(whole.cells, values, strict=True))
    finer = np.array([
        0.37 * ("moe1" in split.names(cell)) * ("moe2" not in split.names(cell))
        + lookup[cell & 0b11 | (0b100 if "moe2" in split.names(cell) else 0)]
        for cell in split.cells
    ])  # fmt: skip
    before, after = index_weights(whole, "owen") @ values, index_weights(split, "owen") @ finer
    np.testing.assert_allclose(after[:2], before[:2], **EXACT)
    assert np.abs((index_weights(split, "faigle-kern") @ finer - np.append(before, 0))[:2]).max() > 1e-3


def test_null_player_symmetry_and_linearity():
    parts = lattice("abcd")
    symmetric = game(parts, lambda s: float(len(s & {"a", "b"}) ** 2 + ("c" in s)))
    for index in INDICES:
        got = index_weights(parts, index) @ symmetric
        np.testing.assert_allclose([got[3], got[0] - got[1]], 0, **EXACT)
        v, w = random_game(LOSS, 1), random_game(LOSS, 2)
        if undefined_reason(LOSS, index) is None:
            rows = index_weights(LOSS, index)
            np.testing.assert_allclose(rows @ (2 * v - 3 * w), 2 * (rows @ v) - 3 * (rows @ w), **EXACT)


def test_first_and_last_go_by_prerequisites_and_dependants():
    values = {cell: float(np.random.default_rng(cell).random()) for cell in PRECEDENCE.cells}
    v = np.array([values[cell] for cell in PRECEDENCE.cells])
    m, b, c, a = 1, 2, 4, 8
    first = index_weights(PRECEDENCE, "first") @ v
    last = index_weights(PRECEDENCE, "last") @ v
    np.testing.assert_allclose(first, [values[m] - values[0], values[m | b] - values[m], values[m | c] - values[m],
                                       values[a] - values[0]], **EXACT)  # fmt: skip
    np.testing.assert_allclose(last, [values[15] - values[a], values[15] - values[15 ^ b], values[15] - values[15 ^ c],
                                      values[15] - values[15 ^ a]], **EXACT)  # fmt: skip


def test_feasible_counts_and_variance_multipliers():
    names = [*LOSS.components, "dualpipe", "alltoall"]
    speed = lattice(names, {"aux-free": ["moe"], "alltoall": ["moe"]})
    assert len(LOSS.cells) == 48
    assert len(speed.cells) == 160
    np.testing.assert_allclose(np.square(index_weights(LOSS, "owen")).sum(axis=1), 0.64 / 3, **EXACT)
    by_name = dict(zip(names, np.square(index_weights(speed, "owen")).sum(axis=1), strict=True))
    assert by_name["mla"] == pytest.approx(0.144, abs=5e-4)
    assert by_name["aux-free"] == pytest.approx(0.072, abs=5e-4)
    full = lattice("abcdefgh")
    assert np.square(index_weights(full, "banzhaf")).sum(axis=1) == pytest.approx(1 / 64)
    assert np.square(index_weights(full, "shapley")).sum(axis=1) == pytest.approx(0.0762, abs=5e-5)
    pair = interaction_weights(full)["a", "b"]
    assert np.square(pair).sum() == pytest.approx(16 / 256)


def test_agrees_with_shapiq_on_random_games():
    from shapiq.game_theory.exact import ExactComputer

    parts = lattice("abcdef")
    rows = {index: index_weights(parts, index) for index in ("shapley", "banzhaf")}
    pairs = interaction_weights(parts)
    powers = 1 << np.arange(6)
    # The oracle is slow: the Shapley value on all games, the other two on every fifth.
    for seed in range(100):
        values = random_game(parts, seed)
        oracle = ExactComputer(n_players=6, game=lambda x, v=values: v[np.asarray(x, dtype=int) @ powers])
        often = seed % 5 == 0
        for index, name in (("shapley", "SV"), ("banzhaf", "BV"))[: 2 if often else 1]:
            theirs = oracle(name, order=1)
            assert np.abs([theirs[(i,)] for i in range(6)] - rows[index] @ values).max() < 1e-10
        if often:
            theirs = oracle("BII", order=2)
            ours = [pairs["abcdef"[i], "abcdef"[j]] @ values for i, j in combinations(range(6), 2)]
            assert np.abs([theirs[pair] for pair in combinations(range(6), 2)] - np.array(ours)).max() < 1e-10


def test_nested_pairs_are_not_applicable_and_others_average_over_their_contexts():
    pairs = interaction_weights(LOSS)
    assert pairs["moe", "aux-free"] is None
    assert sum(weights is not None for weights in pairs.values()) == 14
    # mla x aux-free only exists with moe on, and does not depend on what else is on.
    both = {"mla", "aux-free"}
    np.testing.assert_allclose(pairs["mla", "aux-free"] @ game(LOSS, lambda s: 3.0 * (both <= s)), 3.0, **EXACT)
    # mla x moe is averaged where moe may be taken away, which is without aux-free.
    np.testing.assert_allclose(pairs["mla", "moe"] @ game(LOSS, lambda s: 3.0 * (both <= s)), 0.0, **EXACT)
    triple = {"mla", "moe", "mtp"}
    np.testing.assert_allclose(pairs["mla", "moe"] @ game(LOSS, lambda s: 3.0 * (triple <= s)), 1.5, **EXACT)
    assert np.abs(pairs["mla", "aux-free"] @ game(LOSS, lambda s: 2.0 * ("mla" in s) + ("moe" in s))) < 1e-12


def test_dividends_rebuild_the_game_and_the_spectrum_says_how_additive_it_is():
    values = random_game(LOSS, 4)
    np.testing.assert_allclose(model_matrix(LOSS, None) @ dividends(LOSS, values), values, **EXACT)
    additive = game(LOSS, lambda s: 2.0 * ("mla" in s) - ("aux-free" in s))
    assert order_spectrum(LOSS, additive) == {1: 1.0, 2: 0.0, 3: 0.0, 4: 0.0, 5: 0.0}
    mixed = game(LOSS, lambda s: 3.0 * ("mla" in s) - ({"mtp", "fp8"} <= s))
    assert order_spectrum(LOSS, mixed)[2] == pytest.approx(0.25)
    assert order_spectrum(LOSS, np.zeros(48)) == dict.fromkeys(range(1, 6), 0.0)


def test_terms_count_topmost_members_only():
    orders = dict(zip(LOSS.cells, term_orders(LOSS).tolist(), strict=True))
    assert orders[0] == 0
    assert orders[LOSS.mask(["moe", "aux-free"])] == 1
    assert orders[LOSS.mask(["moe", "aux-free", "mla"])] == 2
    assert [int((term_orders(LOSS) <= k).sum()) for k in (1, 2, 3)] == [7, 21, 37]


def test_prerequisites_are_closed_and_merge_blocks():
    chain = lattice("abcd", {"c": "b", "b": "a"}, blocks=["cd"])
    assert chain.needs[2] == 0b011
    assert chain.blocks == (0b1111,)
    assert chain.cells == tuple(sorted({0, 1, 3, 7, 8, 9, 11, 15}))
    assert lattice("abc", {"b": "a"}).blocks == (0b011, 0b100)


def test_twelve_components_are_exact():
    parts = lattice([f"c{i}" for i in range(12)], {"c1": ["c0"]}, blocks=[["c2", "c3", "c4"]])
    values = random_game(parts, 0)
    np.testing.assert_allclose((index_weights(parts, "owen") @ values).sum(), values[-1], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([],), "no component"),
        ((["a", "a"],), "given twice"),
        (([f"c{i}" for i in range(13)],), "at most 12"),
        ((["a", "b"], {"a": ["b"], "b": ["a"]}), "circle"),
        ((["a"], {"a": ["a"]}), "circle"),
        ((["a"], {"a": ["x"]}), "'x', which is not a component"),
        ((["a", "b"], {}, [["a"], ["a", "b"]]), "two blocks"),
        ((["a"], {}, [["z"]]), "block names 'z'"),
    ],
)
def test_wrong_lattices_are_refused_with_a_sentence(arguments, words):
    with pytest.raises(ValueError, match=words):
        lattice(*arguments)


def test_infeasible_cells_and_undefined_indices_say_why():
    with pytest.raises(ValueError, match="aux-free is on without moe"):
        LOSS.index([LOSS.mask(["aux-free"])])
    with pytest.raises(ValueError, match="prerequisites forbid"):
        index_weights(LOSS, "shapley")
    with pytest.raises(ValueError, match="unknown index"):
        undefined_reason(LOSS, "shaply")
    with pytest.raises(ValueError, match="48 feasible"):
        dividends(LOSS, [0.0])
