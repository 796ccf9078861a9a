"""Estimates from runs: textbook intervals, the right noise model for every layout of seeds, coverage."""

import numpy as np
import pytest
from scipy import stats

from ablate.attribution.design.exchange import lattice_design, optimal
from ablate.attribution.estimation.blocked import blocked_fit
from ablate.attribution.estimation.estimates import Observations, estimate, seed_layout
from ablate.attribution.indices import index_weights, total_weights
from ablate.attribution.lattice import lattice, model_matrix, term_orders
from ablate.attribution.verdicts import interval, max_t_critical

LOSS = lattice(["mla", "moe", "aux-free", "mtp", "fp8", "distill"], {"aux-free": ["moe"]})
OWEN = dict(zip(LOSS.components, index_weights(LOSS, "owen"), strict=True))

OWEN2 = dict(zip("ab", index_weights(lattice("ab"), "owen"), strict=True))


def functionals(parts, *indices):
    rows = {f"{i}:{c}": row for i in indices for c, row in zip(parts.components, index_weights(parts, i), strict=True)}
    return {"total": total_weights(parts), **rows}


def observed(cells, seeds, values):
    return Observations(cells=tuple(cells), values=tuple(map(float, values)), clusters=tuple(seeds))


def table(parts, seeds, generator, noise=0.01):
    """Every cell on every seed: (cells, seeds, values)."""
    cells = [cell for _ in range(seeds) for cell in parts.cells]
    keys = [seed for seed in range(seeds) for _ in parts.cells]
    values = generator.normal(3, noise, len(cells)) + generator.normal(0, 1, seeds)[keys]
    return cells, keys, values


def test_complete_seeds_give_one_value_per_seed_and_its_t_interval():
    parts = lattice("abc", {"c": "b"})
    cells, seeds, values = table(parts, 5, np.random.default_rng(0))
    found = estimate(parts, observed(cells, seeds, values), functionals(parts, "first", "last", "owen"))
    assert found.layout == "complete"
    per_seed = values.reshape(5, -1)
    for name, weights in functionals(parts, "first", "last", "owen").items():
        expected = stats.ttest_1samp(per_seed @ weights, 0).confidence_interval(0.95)
        line = found.lines[name]
        low_high = interval(line.value, line.standard_error, line.df, 0.95)
        assert low_high == pytest.approx((expected.low, expected.high))
        assert (line.n, line.df) == (5, 4)
    left = per_seed - per_seed.mean(0) - per_seed.mean(1, keepdims=True) + per_seed.mean()
    assert found.residual_sd == pytest.approx(((left**2).sum() / (4 * 5)) ** 0.5)


def test_rows_in_any_order_give_the_same_answer():
    parts = lattice("ab")
    cells, seeds, values = table(parts, 4, np.random.default_rng(1))
    shuffled = np.random.default_rng(2).permutation(len(cells))
    one = estimate(parts, observed(cells, seeds, values), functionals(parts, "owen"))
    two = estimate(
        parts,
        observed(*([column[i] for i in shuffled] for column in (cells, seeds, values))),
        functionals(parts, "owen"),
    )
    for name in one.lines:
        assert one.lines[name].value == pytest.approx(two.lines[name].value)
        assert one.lines[name].standard_error == pytest.approx(two.lines[name].standard_error)


def test_rank_claims_use_the_joint_covariance():
    parts = lattice("ab")
    cells, seeds, values = table(parts, 6, np.random.default_rng(3))
    found = estimate(parts, observed(cells, seeds, values), functionals(parts, "owen"))
    rows = index_weights(parts, "owen")
    expected = stats.ttest_1samp(values.reshape(6, -1) @ (rows[0] - rows[1]), 0)
    line = found.difference("owen:a", "owen:b")
    assert line.value / line.standard_error == pytest.approx(expected.statistic)
    assert line.df == 5


def test_unshared_seeds_of_two_variants_give_welch():
    parts = lattice("a")
    on, off = [2.9, 2.95, 2.7], [3.0, 3.1, 3.05, 3.3, 2.9]
    found = estimate(parts, observed([1] * 3 + [0] * 5, range(8), on + off), functionals(parts, "owen"))
    expected = stats.ttest_ind(on, off, equal_var=False)
    line = found.lines["owen:a"]
    assert found.layout == "independent"
    assert line.value / line.standard_error == pytest.approx(expected.statistic)
    assert line.df == pytest.approx(expected.df)


def test_repeated_variants_bring_their_own_variances():
    """Satterthwaite over four arms, written out by hand; and the joint covariance that rank claims need."""
    parts = lattice("ab")
    generator = np.random.default_rng(4)
    arms = [generator.normal(0, sd, n) for sd, n in ((0.5, 20), (2, 3), (1, 5), (3, 2))]
    runs = observed(np.repeat(parts.cells, [20, 3, 5, 2]), [None] * 30, np.concatenate(arms))
    found = estimate(parts, runs, functionals(parts, "owen"))
    shares = np.array([arm.var(ddof=1) / len(arm) for arm in arms]) / 4
    line = found.lines["owen:a"]
    assert line.standard_error == pytest.approx(shares.sum() ** 0.5)
    assert line.df == pytest.approx(shares.sum() ** 2 / (shares**2 / [19, 2, 4, 1]).sum())
    rows = index_weights(parts, "owen")
    variance = ((rows[0] - rows[1]) ** 2 * shares * 4).sum()
    assert found.difference("owen:a", "owen:b").standard_error == pytest.approx(variance**0.5)
    assert found.warnings == ()


def coverage(sizes, spreads, sims, seed):
    """Coverage of zero and rate of intervals without it, for effects of two components that do nothing."""
    parts = lattice("ab")
    generator = np.random.default_rng(seed)
    weights = functionals(parts, "owen")
    hits = 0
    for _ in range(sims):
        values = np.concatenate([generator.normal(0, sd, n) for n, sd in zip(sizes, spreads, strict=True)])
        runs = observed(np.repeat(parts.cells, sizes), [None] * len(values), values)
        for line in estimate(parts, runs, weights).lines.values():
            hits += abs(line.value) <= stats.t.ppf(0.975, line.df) * line.standard_error
    return hits / (len(weights) * sims)


def test_a_noisy_arm_with_few_runs_does_not_borrow_the_calm_of_a_common_one():
    """The pooled variance that stood here before covered .57."""
    assert coverage((20, 3, 3, 3), (0.5, 2, 2, 2), 300, seed=20) > 0.92


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "spreads"),
    [((20, 3, 3, 3), (1, 1, 1, 1)), ((20, 3, 3, 3), (0.5, 2, 2, 2)), ((20, 2, 2, 2), (0.5, 3, 3, 3)),
     ((5, 5, 5, 5), (1, 1, 1, 4))],
)  # fmt: skip
def test_unequal_arms_cover(sizes, spreads):
    assert 0.94 < coverage(sizes, spreads, 3000, seed=21) < 0.97


def test_one_run_of_a_variant_is_told_to_rest_on_equal_noise():
    parts = lattice("ab")
    runs = observed([0] * 8 + [1, 2, 3], [None] * 11, np.random.default_rng(22).normal(0, 1, 11))
    assert any("a, b, full ran once" in w and "same noise" in w for w in estimate(parts, runs, OWEN2).warnings)


def test_equal_differences_have_the_width_of_rounding_and_a_word():
    parts = lattice("a")
    cells, seeds, values = [0, 1] * 3, [0, 0, 1, 1, 2, 2], [3.0, 2.99, 3.1, 3.09, 3.2, 3.19]
    runs = Observations(cells=tuple(cells), values=tuple(values), clusters=tuple(seeds), resolution=0.01)
    found = estimate(parts, runs, {"a": np.array([-1.0, 1.0])})
    assert found.lines["a"].standard_error == pytest.approx(0.01 * (6 / 9 / 12) ** 0.5)
    assert "rounding (to 0.01)" in found.warnings[0]
    whole = estimate(parts, observed(cells, seeds, values), {"a": np.array([-1.0, 1.0])})
    assert whole.lines["a"].standard_error < 1e-15
    assert "copies of one another" in whole.warnings[0]


def test_one_missing_variant_leaves_exact_what_does_not_need_it():
    parts = lattice("abc")
    cells = [cell for cell in parts.cells if cell != 1]
    values = np.random.default_rng(15).normal(0, 1, (3, 7))
    runs = observed(cells * 3, np.repeat(range(3), 7), values.ravel())
    found = estimate(parts, runs, functionals(parts, "first", "last", "owen"))
    by_cell = dict(zip(cells, values.mean(0), strict=True))
    assert found.lines["last:a"].value == pytest.approx(by_cell[7] - by_cell[6])
    assert found.lines["first:b"].value == pytest.approx(by_cell[2] - by_cell[0])
    assert "no run of a (of 8 feasible variants)" in found.warnings[0]


def test_the_lattice_run_once_takes_its_noise_from_high_interactions_and_says_so():
    values = np.random.default_rng(5).normal(0, 0.005, 48)
    found = estimate(LOSS, observed(LOSS.cells, [None] * 48, values), OWEN)
    design = model_matrix(LOSS, 3)
    left = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    assert found.residual_df == 48 - 37
    assert found.residual_sd == pytest.approx(((left**2).sum() / 11) ** 0.5)
    line = found.lines["mla"]
    assert line.standard_error == pytest.approx(found.residual_sd * (0.64 / 3) ** 0.5)
    assert "at most 3 components" in found.warnings[0]


def test_optimal_designs_are_fitted_by_least_squares():
    design = optimal(LOSS, 34)
    cells = [run.cell for run in design.runs]
    values = np.random.default_rng(6).normal(0, 0.005, 34)
    found = estimate(LOSS, observed(cells, [run.block for run in design.runs], values), OWEN)
    x = model_matrix(LOSS, 2, cells)
    beta, ss, _, _ = np.linalg.lstsq(x, values, rcond=None)
    wanted = OWEN["fp8"] @ model_matrix(LOSS, 2)
    variance = ss[0] / (34 - 21) * wanted @ np.linalg.inv(x.T @ x) @ wanted
    line = found.lines["fp8"]
    assert line.value == pytest.approx(wanted @ beta)
    assert line.standard_error == pytest.approx(variance**0.5)
    assert (line.df, found.order) == (13, 2)
    assert "more than 2 components are zero" in found.warnings[0]


def test_leave_one_out_tables_define_last_only():
    parts = lattice("abc")
    cells = [7, 6, 5, 3] * 3
    values = np.random.default_rng(7).normal(0, 1, 12)
    runs = observed(cells, np.repeat(range(3), 4), values)
    found = estimate(parts, runs, functionals(parts, "first", "last", "owen"))
    pairs = values.reshape(3, 4)
    expected = stats.ttest_rel(pairs[:, 0], pairs[:, 2]).statistic
    line = found.lines["last:b"]
    assert line.value / line.standard_error == pytest.approx(expected)
    for name in ("first:b", "owen:b", "total"):
        assert found.lines[name].value is None
        assert "no run of none" in found.lines[name].reason


def test_first_and_last_together_give_the_owen_value_under_pairs_only():
    parts = lattice("abcd")
    cells = [0, 1, 2, 4, 8, 15, 14, 13, 11, 7]
    terms = model_matrix(parts, 2)
    game = terms @ np.random.default_rng(8).standard_normal(terms.shape[1])
    runs = observed(cells * 2, [0] * 10 + [1] * 10, np.tile(game[parts.index(cells)], 2))
    found = estimate(parts, runs, functionals(parts, "owen", "first"))
    for i, name in enumerate(parts.components):
        assert found.lines[f"owen:{name}"].value == pytest.approx(index_weights(parts, "owen")[i] @ game)
    assert any("assume that interactions" in warning for warning in found.warnings)


def test_a_missing_run_of_a_seed_refuses_only_what_needs_it():
    parts = lattice("ab")
    cells, seeds, values = table(parts, 4, np.random.default_rng(9))
    kept = [r for r in range(16) if not (seeds[r] == 3 and cells[r] == 1)]
    runs = observed(*([column[r] for r in kept] for column in (cells, seeds, values)))
    found = estimate(parts, runs, functionals(parts, "first", "last", "owen"))
    assert found.layout == "mixed"
    assert "seed 3 has no run of a " in found.lines["first:a"].reason
    for name in ("first:a", "last:b", "owen:a"):
        assert found.lines[name].standard_error is None
    per_seed = values.reshape(4, 4)
    expected = stats.ttest_rel(per_seed[:, 2], per_seed[:, 0]).statistic
    line = found.lines["first:b"]
    assert line.value / line.standard_error == pytest.approx(expected)


def test_one_seed_for_all_gives_no_interval():
    found = estimate(LOSS, observed(LOSS.cells, [1337] * 48, np.random.default_rng(0).normal(0, 1, 48)), OWEN)
    line = found.lines["mla"]
    assert line.value is not None
    assert line.standard_error is None
    assert "one seed for all" in line.reason


def test_a_run_twice_on_one_seed_is_refused():
    with pytest.raises(ValueError, match="two runs of seed 5"):
        observed([0, 0, 1], [5, 5, 5], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="aux-free is on without moe"):
        estimate(LOSS, observed([LOSS.mask(["aux-free"]), 0], [1, 2], [1.0, 2.0]), OWEN)


def test_identical_records_give_exactly_zero():
    for seeds in (np.repeat(range(4), 12), range(48), [None] * 48):
        found = estimate(LOSS, observed(LOSS.cells, seeds, [0.1] * 48), OWEN)
        assert all(line.value == 0.0 for line in found.lines.values())


def test_layouts_are_told_apart():
    parts = lattice("ab")

    def layout(cells, seeds):
        return seed_layout(parts, observed(cells, seeds, [0.0] * len(cells)))

    assert layout([0, 1, 2, 3] * 2, [0] * 4 + [1] * 4) == "complete"
    assert layout([0, 1, 2, 3], range(4)) == "independent"
    assert layout([0, 1, 2, 3], [None] * 4) == "independent"
    assert layout([0, 1, 2, 3, 0, 1, 2], [0] * 4 + [1] * 3) == "mixed"
    assert layout([0, 3, 1, 2] * 3, np.repeat(range(6), 2)) == "blocked"


def test_block_effects_cancel_exactly():
    design = lattice_design(LOSS)
    cells, seeds = [r.cell for r in design.runs], [r.block for r in design.runs]
    values = np.random.default_rng(10).normal(0, 0.01, len(cells))
    moved = values + np.random.default_rng(11).normal(0, 5, design.blocks)[seeds]
    one, two = (estimate(LOSS, observed(cells, seeds, v), OWEN) for v in (values, moved))
    assert one.layout == "blocked"
    for name in LOSS.components:
        assert one.lines[name].value == pytest.approx(two.lines[name].value, abs=1e-12)
        assert one.lines[name].standard_error == pytest.approx(two.lines[name].standard_error)
        assert one.lines[name].df == design.df


def test_with_two_runs_a_block_the_cluster_robust_variance_is_that_of_the_paired_t():
    parts = lattice("a")
    values = np.random.default_rng(12).normal(0, 1, (7, 2))
    fit = blocked_fit(parts, [1, 0] * 7, np.repeat(range(7), 2), index_weights(parts, "owen"), values.ravel())
    differences = values[:, 0] - values[:, 1]
    assert fit.values[0] == pytest.approx(differences.mean())
    assert fit.covariance[0, 0] == pytest.approx(differences.var(ddof=1) / 7)


def truth(kind, generator):
    """A game on the lattice: main effects, a third of the pairs, and triples or saturation."""
    orders = term_orders(LOSS)
    size = {"2way": 0.0, "3way": 0.01, "sat": 0.0}[kind]
    beta = np.zeros(48)
    beta[orders == 1] = -generator.uniform(0.002, 0.1, 6)
    beta[orders == 2] = generator.normal(0, 0.01, 14) * (generator.random(14) < 0.35)
    beta[orders == 3] = generator.normal(0, size, 16) * (generator.random(16) < 0.2)
    values = model_matrix(LOSS, None) @ beta
    return -0.2 * (1 - np.exp(values / 0.2)) if kind == "sat" else values


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["2way", "3way", "sat"])
@pytest.mark.parametrize("slope", [0.0, 0.008])
def test_blocked_lattices_cover_whatever_the_seeds_do(kind, slope):
    """12 blocks of 4 and 3 pairs of ends; effects that change from seed to seed (sd `slope`) included."""
    generator = np.random.default_rng(13)
    design = lattice_design(LOSS)
    cells, seeds = [r.cell for r in design.runs], np.array([r.block for r in design.runs])
    on = np.array([[cell >> i & 1 for i in range(6)] for cell in cells])
    hits, sims = 0, 150
    for _ in range(sims):
        game = truth(kind, generator)
        slopes = generator.normal(0, slope, (design.blocks, 6)) if slope else np.zeros((design.blocks, 6))
        noise = generator.normal(0, 0.004, len(cells)) + generator.normal(0, 0.02, design.blocks)[seeds]
        values = game[LOSS.index(cells)] + (on * slopes[seeds]).sum(1) + noise
        lines = estimate(LOSS, observed(cells, seeds.tolist(), values), OWEN).lines
        for name, line in lines.items():
            low, high = interval(line.value, line.standard_error, line.df, 0.95)
            hits += low <= OWEN[name] @ game <= high
    assert 0.925 < hits / (6 * sims) <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["2way", "3way", "sat"])
def test_the_lattice_with_repeats_covers_alone_and_jointly(kind):
    generator = np.random.default_rng(14)
    design = lattice_design(LOSS, block_size=1)
    cells = [run.cell for run in design.runs]
    sims, hits, joint, critical = 200, 0, 0, None
    for _ in range(sims):
        game = truth(kind, generator)
        values = game[LOSS.index(cells)] + generator.normal(0, 0.005, len(cells))
        found = estimate(LOSS, observed(cells, [None] * len(cells), values), OWEN)
        critical = critical or max_t_critical(found.covariance, found.residual_df)
        errors = [abs(line.value - OWEN[n] @ game) / line.standard_error for n, line in found.lines.items()]
        hits += sum(error <= stats.t.ppf(0.975, found.residual_df) for error in errors)
        joint += max(errors) <= critical
    assert 0.93 < hits / (6 * sims) < 0.975
    assert joint / sims > 0.91
