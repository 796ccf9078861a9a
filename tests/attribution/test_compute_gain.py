"""Compute-equivalent gain: known curves, bounds, seeds, targets, and the table that adds up."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ablate.attribution.gain.channels import ChannelTable, MeasuredRun, VariantSpeed, measured_table
from ablate.attribution.gain.compute_gain import (
    DecayedCurve,
    log_tokens_to,
    loss_slope,
    quadratic_coefficients,
    solve_descending,
    target_losses,
    token_gain,
)
from ablate.attribution.indices import index_weights
from ablate.attribution.lattice import Lattice, lattice

BUDGET = 2e9
FRACTIONS = (0.25, 0.5, 1.0)


def quadratic_curve(
    seed: int, gain: float = 0.0, shift: float = 0.0, bend: float = 0.05, fractions: tuple[float, ...] = FRACTIONS
) -> DecayedCurve:
    """Loss 3 - 0.3 x + bend x^2 with x = ln(tokens / budget) + gain: a gain of exactly `gain` at every loss."""
    x = np.log(np.array(fractions)) + gain
    loss = 3.0 - 0.3 * x + bend * x * x + shift
    return DecayedCurve(seed=seed, tokens=tuple(BUDGET * f for f in fractions), loss=tuple(float(v) for v in loss))


def loss_at(x: float, bend: float = 0.05) -> float:
    return 3.0 - 0.3 * x + bend * x * x


@pytest.mark.parametrize("bend", [0.05, 0.0, -0.02, 1e-14])
@pytest.mark.parametrize("fraction", [0.25, 0.4, 0.5, 0.9, 1.0])
def test_inversion_of_a_quadratic_is_exact(bend: float, fraction: float) -> None:
    target = loss_at(math.log(fraction), bend)
    assert log_tokens_to(quadratic_curve(0, bend=bend), target) == pytest.approx(math.log(BUDGET * fraction), abs=1e-9)


def test_the_falling_branch_is_taken_even_beyond_the_vertex() -> None:
    # (x - 1)^2 passes 0.25 at 0.5, still falling, and at 1.5, rising; the curve is centred beyond its vertex.
    assert solve_descending(np.array([1.0, -2.0, 1.0]), 0.25) == pytest.approx(0.5)
    assert solve_descending(np.array([4.0, 4.0, 1.0]), 0.25) == pytest.approx(-2.5)
    assert np.isnan(solve_descending(np.array([1.0, -2.0, 1.0]), -0.1))
    assert np.isnan(solve_descending(np.array([1.0, 0.5, 0.0]), 0.5)), "a rising line never falls through a loss"


def test_more_than_three_points_are_fitted_by_least_squares() -> None:
    x = np.log(np.array([0.1, 0.25, 0.5, 0.75, 1.0]))
    loss = np.array([3.9, 3.5, 3.3, 3.15, 3.0])
    assert quadratic_coefficients(x, loss) == pytest.approx(np.polynomial.polynomial.polyfit(x, loss, 2))


def test_paired_gain_is_the_textbook_t_interval() -> None:
    shifts = [0.004, -0.002, 0.001]
    gains = [0.15, 0.17, 0.13]
    baseline = [quadratic_curve(s, shift=d) for s, d in enumerate(shifts)]
    variant = [quadratic_curve(s, gain=g, shift=d) for s, (g, d) in enumerate(zip(gains, shifts, strict=True))]
    gain = token_gain(baseline, variant, loss_at(math.log(0.6)))
    half = stats.t.ppf(0.975, 2) * stats.sem(gains)
    assert (gain.estimate, gain.bound, gain.n, gain.df) == (pytest.approx(0.15), "exact", 3, 2)
    assert (gain.low, gain.high) == pytest.approx((0.15 - half, 0.15 + half))


def test_unpaired_gain_is_welch() -> None:
    baseline = [quadratic_curve(s, gain=g) for s, g in enumerate([0.0, 0.01, -0.02, 0.03])]
    variant = [quadratic_curve(s + 10, gain=g) for s, g in enumerate([0.2, 0.25, 0.16])]
    gain = token_gain(baseline, variant, loss_at(math.log(0.6)))
    expected = stats.ttest_ind([0.2, 0.25, 0.16], [0.0, 0.01, -0.02, 0.03], equal_var=False).confidence_interval()
    assert (gain.low, gain.high) == pytest.approx((expected.low, expected.high))


def test_partly_shared_seeds_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"seeds \[1\] ran on both sides but \[0, 2\] on one only"):
        token_gain([quadratic_curve(0), quadratic_curve(1)], [quadratic_curve(1), quadratic_curve(2)], 3.2)


def test_a_variant_that_never_arrives_gives_an_upper_bound() -> None:
    target = loss_at(0.0)
    shifts = [0.001, -0.001, 0.0]
    baseline = [quadratic_curve(s, shift=d) for s, d in enumerate(shifts)]
    worse = [quadratic_curve(s, gain=-0.2, shift=d) for s, d in enumerate(shifts)]
    gain = token_gain(baseline, worse, target)
    assert (gain.estimate, gain.bound, gain.low) == (None, "at most", -math.inf)
    crossings = [log_tokens_to(c, target) for c in baseline]
    limit = np.mean(crossings) + stats.t.ppf(0.95, 2) * stats.sem(crossings) - math.log(BUDGET)
    assert gain.high == pytest.approx(limit)
    assert gain.high > -0.2, "the bound holds for the true gain"
    mirrored = token_gain(worse, baseline, target)
    assert (mirrored.bound, mirrored.high) == ("at least", math.inf)
    assert mirrored.low == pytest.approx(-gain.high)
    both = token_gain(worse, [quadratic_curve(s, gain=-0.3) for s in range(3)], target)
    assert (both.bound, both.low, both.high) == ("unknown", -math.inf, math.inf)


def test_a_variant_that_arrives_before_its_first_point_gives_a_lower_bound() -> None:
    baseline = [quadratic_curve(s) for s in range(3)]
    gain = token_gain(baseline, [quadratic_curve(s, gain=2.0) for s in range(3)], loss_at(0.0))
    assert (gain.estimate, gain.bound) == (None, "at least")
    assert gain.low == pytest.approx(math.log(4.0)), "it had passed the target a quarter of the way"


def test_single_seeds_may_cross_just_beyond_the_range_but_the_mean_may_not() -> None:
    curves = {"worst": [quadratic_curve(s, gain=g) for s, g in enumerate([-0.02, 0.0, 0.02])]}
    target = target_losses(curves)[0].loss
    gain = token_gain(curves["worst"], curves["worst"], target)
    assert gain.estimate == 0.0
    assert log_tokens_to(quadratic_curve(0, gain=-0.3), loss_at(0.0)) == pytest.approx(math.log(BUDGET) + 0.3)
    assert math.isnan(log_tokens_to(quadratic_curve(0, gain=-0.5), loss_at(0.0)))
    stray = [quadratic_curve(s, gain=g) for s, g in enumerate([-0.5, 0.4, 0.4])]
    assert token_gain(curves["worst"], stray, loss_at(0.0) + 0.001).bound == "at most"


def test_targets_are_the_worst_variants_losses_at_its_own_budget() -> None:
    curves = {"none": [quadratic_curve(0), quadratic_curve(1)], "moe": [quadratic_curve(0, gain=0.3)]}
    curves["bad"] = [quadratic_curve(0, gain=-0.1)]
    targets = target_losses(curves)
    assert [t.worst for t in targets] == ["bad"] * 3
    assert [t.loss for t in targets] == pytest.approx([loss_at(math.log(f) - 0.1) for f in (1.0, 0.75, 0.5)])
    with pytest.raises(ValueError, match="outside its decayed points"):
        target_losses(curves, fractions=(0.1,))


def test_a_constant_gain_is_read_at_every_target() -> None:
    curves = {"none": [quadratic_curve(s) for s in range(3)], "moe": [quadratic_curve(s, gain=0.3) for s in range(3)]}
    for target in target_losses(curves):
        assert token_gain(curves["none"], curves["moe"], target.loss).estimate == pytest.approx(0.3, abs=1e-9)


def test_the_slope_is_that_of_the_mean_curve_at_the_target() -> None:
    curves = [quadratic_curve(s, shift=d) for s, d in enumerate([0.01, -0.01])]
    assert loss_slope(curves, loss_at(math.log(0.5))) == pytest.approx(0.3 - 0.1 * math.log(0.5))
    with pytest.raises(ValueError, match="never falls to"):
        loss_slope(curves, 0.0)


@pytest.mark.parametrize(
    ("tokens", "loss", "message"),
    [
        ((1.0, 2.0), (3.0, 2.0), "at least 3 decayed points"),
        ((1.0, 3.0, 2.0), (3.0, 2.0, 1.0), "increasing"),
        ((1.0, 2.0, 3.0), (3.0, math.nan, 1.0), "finite"),
        ((0.0, 2.0, 3.0), (3.0, 2.0, 1.0), "positive"),
    ],
)
def test_wrong_curves_are_refused(tokens: tuple[float, ...], loss: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecayedCurve(seed=0, tokens=tokens, loss=loss)


def measured(game: Lattice, gains: np.ndarray, speeds: list[VariantSpeed], *, index: str = "owen") -> ChannelTable:
    """The table of runs on two seeds, whose ln(tokens) at the target differ by `gains` (variants,) exactly."""
    runs = [
        MeasuredRun(cell=cell, cluster=seed, curve=quadratic_curve(seed, gain=gain))
        for cell, gain in zip(game.cells, gains, strict=True)
        for seed in (0, 1)
    ]
    return measured_table(game, runs, dict(zip(game.cells, speeds, strict=True)), loss_at(math.log(0.7)), index=index)


def some_costs(rng: np.random.Generator) -> tuple[Lattice, np.ndarray, list[VariantSpeed]]:
    game = lattice(["mla", "moe", "aux-free", "mtp"], {"aux-free": ["moe"]})
    speeds = [
        VariantSpeed(flops_per_token=float(np.exp(20 + rng.normal())), log_flops_per_s=tuple(33 + rng.normal(size=2)))
        for _ in game.cells
    ]
    return game, rng.uniform(-0.3, 0.3, len(game.cells)), speeds


def test_the_channel_table_adds_up_by_rows_and_columns() -> None:
    game, gains, speeds = some_costs(np.random.default_rng(3))
    table = measured(game, gains, speeds)
    flops = -np.log([speed.flops_per_token for speed in speeds])
    rate = np.array([np.mean(speed.log_flops_per_s) for speed in speeds])
    seconds = gains + flops + rate
    assert table.total == pytest.approx(seconds[-1] - seconds[0], abs=1e-9)
    owen = index_weights(game, "owen")
    assert np.abs(table.by_component - owen @ seconds).max() < 1e-9
    assert np.abs(table.gains - owen @ np.column_stack([gains, flops, rate])).max() < 1e-9
    assert math.prod(np.exp(table.by_component)) == pytest.approx(math.exp(table.total), rel=1e-9)
    assert (table.errors[:, 1] == 0).all(), "FLOPs per token are closed form"


def test_a_flops_only_change_lands_in_the_flops_channel_alone() -> None:
    speeds = [VariantSpeed(flops_per_token=flops, log_flops_per_s=(33.0, 33.0)) for flops in (1e9, 1.25e9)]
    table = measured(lattice(["dummy"]), np.zeros(2), speeds)
    assert table.gains == pytest.approx(np.array([[0.0, math.log(0.8), 0.0]]))


def test_intervals_of_the_table_are_t_with_satterthwaite_for_totals() -> None:
    table = ChannelTable(
        components=("mla",),
        gains=np.array([[0.1, 0.2, -0.05]]),
        errors=np.array([[0.03, 0.0, 0.04]]),
        dfs=np.array([[5.0, np.inf, 10.0]]),
    )
    tokens, flops, rate = table.intervals()[0]
    assert tokens == pytest.approx([0.1 - 0.03 * stats.t.ppf(0.975, 5), 0.1 + 0.03 * stats.t.ppf(0.975, 5)])
    assert flops == pytest.approx([0.2, 0.2])
    assert rate == pytest.approx([-0.05 - 0.04 * stats.t.ppf(0.975, 10), -0.05 + 0.04 * stats.t.ppf(0.975, 10)])
    half = 0.05 * stats.t.ppf(0.975, 0.05**4 / (0.03**4 / 5 + 0.04**4 / 10))
    assert table.component_intervals()[0] == pytest.approx([0.25 - half, 0.25 + half])
    exact = replace(table, errors=np.zeros((1, 3)), dfs=np.full((1, 3), np.inf))
    assert exact.component_intervals()[0] == pytest.approx([0.25, 0.25])


def test_channel_tables_that_cannot_add_up_are_refused() -> None:
    game, gains, speeds = some_costs(np.random.default_rng(4))
    for index in ("first", "last"):
        with pytest.raises(ValueError, match="do not add up"):
            measured(game, gains, speeds, index=index)
