"""Designs: optimality bars, seeds, precision, refusals."""

import numpy as np
import pytest

from ablate.attribution.design.designs import (
    Run,
    add_cells,
    add_one_in,
    check_seeds,
    drop_cells,
    first_last,
    leave_one_out,
    make_design,
    one,
)
from ablate.attribution.design.exchange import lattice_design, optimal, optimal_cells, staged, up_to_stage
from ablate.attribution.design.planning import plan, require_precision, runs_for
from ablate.attribution.estimation.estimates import Observations, estimate
from ablate.attribution.indices import index_weights
from ablate.attribution.lattice import lattice, model_matrix
from ablate.attribution.verdicts import t_quantile

LOSS = lattice(["mla", "moe", "aux-free", "mtp", "fp8", "distill"], {"aux-free": ["moe"]})


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
