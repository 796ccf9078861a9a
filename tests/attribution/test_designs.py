"""Designs: resolutions, optimality bars, seeds, precision, refusals."""

from itertools import combinations

import numpy as np
import pytest

from ablate.attribution.design.designs import (
    Run,
    add_cells,
    add_one_in,
    check_seeds,
    drop_cells,
    factorial,
    first_last,
    leave_one_out,
    make_design,
    one,
)
from ablate.attribution.design.exchange import lattice_design, optimal, optimal_cells, staged, up_to_stage
from ablate.attribution.design.fractions import fraction, fractional
from ablate.attribution.design.planning import plan, require_precision, runs_for
from ablate.attribution.estimation.estimates import Observations, estimate
from ablate.attribution.indices import index_weights
from ablate.attribution.lattice import lattice, model_matrix
from ablate.attribution.verdicts import t_quantile

LOSS = lattice(["mla", "moe", "aux-free", "mtp", "fp8", "distill"], {"aux-free": ["moe"]})
EIGHT = lattice("abcdefgh")


def levels(cells, factors):
    return np.array([[1 if cell >> i & 1 else -1 for i in range(factors)] for cell in cells])


def measured_resolution(cells, factors):
    """Shortest product of columns that never changes, by trying all of them."""
    table = levels(cells, factors)
    for size in range(1, factors + 1):
        for group in combinations(range(factors), size):
            if abs(table[:, list(group)].prod(axis=1).sum()) == len(cells):
                return size
    return factors + 1


@pytest.mark.parametrize(("runs", "resolution"), [(16, 4), (32, 4), (64, 5), (128, 8), (256, 9)])
def test_fractions_of_eight_factors_have_the_known_resolution(runs, resolution):
    found = fraction(8, runs=runs)
    assert found.resolution == resolution
    assert len(set(found.cells)) == runs
    assert measured_resolution(found.cells, 8) == resolution
    assert 255 in found.cells


@pytest.mark.parametrize(("resolution", "runs"), [(3, 16), (4, 16), (5, 64), (8, 128)])
def test_a_resolution_gets_the_fewest_runs(resolution, runs):
    assert len(fraction(8, resolution=resolution).cells) == runs


def test_the_alias_table_holds_exactly_the_products_that_coincide():
    found = fraction(6, runs=16)
    table = levels(found.cells, 6)

    def column(effect):
        return table[:, [i for i in range(6) if effect >> i & 1]].prod(axis=1)

    aliases = found.aliases(order=2)
    for effect, others in aliases.items():
        same = {e for e in aliases if e != effect and abs(column(e) @ column(effect)) == len(table)}
        assert set(others) == same
    assert all(not others for effect, others in aliases.items() if effect.bit_count() == 1)
    assert any(others for others in aliases.values())


def test_full_fraction_has_no_aliases_and_agrees_with_pydoe():
    pydoe = pytest.importorskip("pyDOE3")
    found = fraction(4, runs=8)
    theirs = pydoe.fracfact("a b c abc")
    assert {tuple(row) for row in levels(found.cells, 4).tolist()} == {tuple(map(int, row)) for row in theirs}
    assert all(not others for others in fraction(4, runs=16).aliases().values())


def variances(cells, order):
    x = model_matrix(LOSS, order, cells)
    wanted = index_weights(LOSS, "owen") @ model_matrix(LOSS, order)
    return np.diag(wanted @ np.linalg.inv(x.T @ x) @ wanted.T)


@pytest.mark.parametrize(("runs", "bar"), [(32, 0.205), (48, 0.130)])
def test_optimal_designs_reach_the_bars(runs, bar):
    cells, worst = optimal_cells(LOSS, runs)
    assert len(cells) == runs
    assert set(cells) <= set(LOSS.cells)
    assert worst == pytest.approx(variances(cells, 2).max())
    assert worst <= bar
    design = optimal(LOSS, runs)
    assert max(design.variance_multiplier) == pytest.approx(worst)
    assert design.layout == "independent"
    assert design.df == runs - 21


def test_the_search_is_repeatable_and_beats_random_cells():
    assert optimal_cells(LOSS, 28, seed=3) == optimal_cells(LOSS, 28, seed=3)
    generator = np.random.default_rng(0)
    random = [variances(generator.permutation(LOSS.cells)[:30], 2).max() for _ in range(20)]
    assert optimal_cells(LOSS, 30)[1] < 0.8 * min(random)


def test_the_lattice_once_has_the_exact_multiplier():
    design = lattice_design(LOSS, block_size=1, extra_runs=0)
    np.testing.assert_allclose(design.variance_multiplier, 0.64 / 3, rtol=1e-12)
    assert design.half_width(0.005) == pytest.approx(t_quantile(0.975, 48 - 37) * 0.005 * (0.64 / 3) ** 0.5)
    repeated = lattice_design(LOSS, block_size=1)
    assert len(repeated.runs) == 54
    assert max(repeated.variance_multiplier) == pytest.approx(0.16)


def test_the_lattice_comes_in_twelve_blocks_of_four_seeds_and_pairs_of_ends():
    design = lattice_design(LOSS)
    sizes = [sum(run.block == block for run in design.runs) for block in range(design.blocks)]
    assert sizes == [4] * 12 + [2] * 3
    assert sorted(run.cell for run in design.runs if run.block < 12) == list(LOSS.cells)
    assert {run.cell for run in design.runs if run.block >= 12} == {0, LOSS.full}
    assert design.layout == "blocked"
    assert design.df == 15 - 1 - 6
    assert len(lattice_design(LOSS, extra_runs=0).runs) == 48


def test_blocks_are_dealt_better_than_at_random():
    blocks = np.repeat(range(12), 4)
    generator = np.random.default_rng(0)
    random = []
    for _ in range(10):
        shuffled = generator.permutation(LOSS.cells).tolist()
        runs = [Run(cell=cell, block=int(block)) for cell, block in zip(shuffled, blocks, strict=True)]
        random.append(sum(make_design("random", LOSS, runs, index="owen", order=2).variance_multiplier))
    assert sum(lattice_design(LOSS, extra_runs=0, order=2).variance_multiplier) < 0.97 * min(random)


def test_multipliers_are_those_of_the_analysis():
    """Noise of one run through the estimator itself has the variance the design announced."""
    for design in (lattice_design(LOSS), optimal(LOSS, 30), lattice_design(LOSS, block_size=1), first_last(LOSS, 3)):
        functionals = dict(zip(LOSS.components, index_weights(LOSS, "owen"), strict=True))
        cells = tuple(run.cell for run in design.runs)
        seeds = tuple(run.block for run in design.runs)
        columns = []
        for r in range(len(cells)):
            unit = tuple(float(k == r) for k in range(len(cells)))
            runs = Observations(cells=cells, values=unit, clusters=seeds)
            found = estimate(LOSS, runs, functionals, order=None if design.name == "first-last" else design.order)
            columns.append([line.value for line in found.lines.values()])
        np.testing.assert_allclose(np.square(columns).sum(axis=0), design.variance_multiplier, rtol=1e-8)


def test_simple_designs_run_every_variant_on_every_seed():
    design = one(LOSS, "moe", 5)
    assert {LOSS.label(cell) for cell in design.cells} == {"full", "mla+mtp+fp8+distill"}
    assert design.variance_multiplier == pytest.approx((2 / 5,))
    assert design.df == 4
    assert design.half_width(0.01) == pytest.approx(t_quantile(0.975, 4) * 0.01 * (2 / 5) ** 0.5)
    drop, add = leave_one_out(LOSS, 3), add_one_in(LOSS, 3)
    assert len(drop.runs) == len(add.runs) == 21
    assert (drop.index, add.index) == ("last", "first")
    assert set(add.cells) == set(add_cells(LOSS))
    assert set(drop.cells) == set(drop_cells(LOSS))
    both = first_last(LOSS, 2)
    assert len(both.cells) == 14
    assert both.order == 2
    assert len(factorial(lattice("abc"), 2).runs) == 16


def test_aliases_are_the_bias_of_ignored_interactions():
    design = optimal(LOSS, 30)
    cells = [run.cell for run in design.runs]
    terms = dict(design.aliases[0][1])
    name, share = max(terms.items(), key=lambda item: abs(item[1]))
    members = set(name.split(" x ")) | ({"moe"} if "aux-free" in name else set())
    game = np.array([float(members <= set(LOSS.names(cell))) for cell in LOSS.cells])
    values = tuple(game[LOSS.index(cells)].tolist())
    owen = dict(zip(LOSS.components, index_weights(LOSS, "owen"), strict=True))
    runs = Observations(cells=tuple(cells), values=values, clusters=tuple(range(len(cells))))
    bias = estimate(LOSS, runs, owen, order=2).lines["mla"].value - owen["mla"] @ game
    assert bias == pytest.approx(share)
    assert lattice_design(LOSS).aliases[0] == ("mla", ())


def test_one_seed_for_all_variants_is_refused():
    with pytest.raises(ValueError, match="one seed for all 48 runs"):
        make_design("lattice", LOSS, [Run(cell=cell, block=7) for cell in LOSS.cells], index="owen")
    with pytest.raises(ValueError, match="one seed for all"):
        lattice_design(LOSS, block_size=48, replicates=1)
    for build in (leave_one_out, add_one_in, first_last):
        with pytest.raises(ValueError, match="at least two seeds"):
            build(LOSS, 1)
    with pytest.raises(ValueError, match="twice on one seed"):
        check_seeds([0, 1, 0], [0, 0, 0])
    assert check_seeds([0, 1, 0, 1], [0, 0, 1, 1]) == "complete"
    assert check_seeds([0, 1, 3], [0, 1, 2]) == "independent"
    assert check_seeds([0, 1, 3, 0], [0, 0, 1, 1]) == "blocked"


def test_staged_designs_pay_for_both_readings():
    design = staged(LOSS)
    first = up_to_stage(design, 0)
    assert len(first.runs) == 28
    assert first.order == 2
    assert design.order is None
    assert {run.cell for run in design.runs} == set(LOSS.cells)
    assert design.stage_confidence(0.95) == pytest.approx(0.975)
    unpaid = make_design("plain", LOSS, design.runs, index="owen")
    assert design.half_width(0.005) > 1.1 * unpaid.half_width(0.005)


@pytest.mark.parametrize(("order", "most"), [(None, 54), (2, 38)])
def test_the_planner_needs_no_more_runs_than_promised(order, most):
    design = plan(LOSS, precision=0.0045, sigma=0.005, order=order)
    assert len(design.runs) <= most
    assert design.half_width(0.005) <= 0.0045
    with pytest.raises(ValueError, match=f"a budget of 30 runs cannot .* {len(design.runs)} runs would"):
        plan(LOSS, precision=0.0045, sigma=0.005, order=order, budget=30)


def test_the_planner_uses_shared_seeds_where_pairing_pays():
    loose = plan(lattice("a"), precision=0.003, sigma=0.005, correlation=0.95)
    assert loose.layout == "complete"
    assert loose.half_width(0.005 * 0.05**0.5) <= 0.003
    assert len(loose.runs) < len(plan(lattice("a"), precision=0.003, sigma=0.005).runs)
    assert plan(LOSS, precision=0.0045, sigma=0.02, correlation=0.97).layout == "blocked"


def test_a_design_that_cannot_reach_a_precision_says_how_many_runs_would():
    design = leave_one_out(LOSS, 3)
    needed = runs_for(design, precision=0.004, sigma=0.005)
    better = leave_one_out(LOSS, needed // 7)
    assert better.half_width(0.005) <= 0.004 < leave_one_out(LOSS, needed // 7 - 1).half_width(0.005)
    with pytest.raises(ValueError, match=f"leave-one-out design with 21 runs .* {needed} runs"):
        require_precision(design, precision=0.004, sigma=0.005)
    require_precision(better, precision=0.004, sigma=0.005)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: factorial(LOSS, 2), "prerequisites forbid"),
        (lambda: fractional(LOSS, runs=16), "use the optimal design"),
        (lambda: fractional(EIGHT, runs=24), "power of two"),
        (lambda: fractional(EIGHT), "either the number of runs or the resolution"),
        (lambda: fractional(EIGHT, resolution=2), "between 3 and 8"),
        (lambda: fractional(EIGHT, runs=16), "no degree of freedom"),
        (lambda: fractional(EIGHT, runs=16, seeds=1), "at least two seeds"),
        (lambda: optimal(LOSS, 21), "at least 22"),
        (lambda: lattice_design(lattice("abc"), extra_runs=0), "at least 5 blocks"),
        (lambda: lattice_design(LOSS, replicates=0), "at least 1"),
        (lambda: one(LOSS, "nla", 3), "unknown component 'nla'"),
        (lambda: plan(LOSS, precision=0.0, sigma=0.005), "above 0"),
        (lambda: plan(LOSS, precision=0.01, sigma=0.005, correlation=1.0), "below 1"),
        (lambda: plan(LOSS, precision=1e-7, sigma=0.005), "reduce the noise"),
        (lambda: lattice_design(LOSS).half_width(-1.0), "0 or more"),
    ],
)
def test_impossible_designs_are_refused_with_a_sentence(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_a_fraction_estimates_the_values_under_its_assumption():
    design = fractional(EIGHT, runs=16, seeds=3)
    assert (design.layout, design.df, design.order) == ("complete", 2, 2)
    terms = model_matrix(EIGHT, 2)
    game = terms @ np.random.default_rng(2).standard_normal(terms.shape[1])
    cells = tuple(run.cell for run in design.runs)
    seeds = tuple(run.block for run in design.runs)
    runs = Observations(cells=cells, values=tuple(game[EIGHT.index(cells)].tolist()), clusters=seeds)
    owen = dict(zip(EIGHT.components, index_weights(EIGHT, "owen"), strict=True))
    for name, line in estimate(EIGHT, runs, owen).lines.items():
        assert line.value == pytest.approx(owen[name] @ game)
