"""Learning-rate fairness: known optima and honest widening."""

import math

import numpy as np
import pytest

from ablate.attribution.gain.learning_rate import (
    REACH,
    Trial,
    fit_surface,
    levels,
    missed_optimum_variance,
    predict_optima,
    screened_cells,
    screening_design,
    tuned_effects,
)
from ablate.attribution.indices import index_weights
from ablate.attribution.lattice import lattice
from ablate.attribution.verdicts import t_quantile

SIX = lattice(["mla", "moe", "aux-free", "mtp", "fp8", "distill"], {"aux-free": ["moe"]})
SHIFTS = np.array([0.3, -0.8, 0.2, 0.4, 0.0, -0.5])
PAIR = lattice(["mla", "mtp"])
DESIGN = screening_design(SIX, rng=np.random.default_rng(0))


def screened(shifts: np.ndarray, *, sigma: float = 0.0, rng: np.random.Generator) -> list[Trial]:
    """Screening trials of a truth with additive optima and levels that interact in every order."""
    of_cell = dict(zip(SIX.cells, rng.normal(3.0, 0.1, len(SIX.cells)), strict=True))
    trials = []
    for cell, rate in DESIGN:
        best = levels(SIX, [cell])[0] @ shifts
        loss = of_cell[cell] + 0.012 * (rate - best) ** 2 + rng.normal(0, sigma)
        trials.append(Trial(cell=cell, log2_lr=rate, seed=0, loss=float(loss)))
    return trials


def test_screening_is_24_runs_that_see_every_component() -> None:
    cells = sorted({cell for cell, _ in DESIGN})
    assert (len(DESIGN), len(cells)) == (24, 8)
    assert sorted({rate for _, rate in DESIGN}) == [-1.5, 0.0, 1.5]
    x = np.column_stack([np.ones(8), levels(SIX, cells)])
    assert np.linalg.matrix_rank(x) == 7
    every = np.column_stack([np.ones(48), levels(SIX)])
    rng = np.random.default_rng(1)
    draws = (every[rng.choice(48, 8, replace=False)] for _ in range(2000))
    assert np.linalg.det(x.T @ x) >= max(np.linalg.det(d.T @ d) for d in draws)
    assert len(screening_design(SIX, cells=12, rng=np.random.default_rng(0))) == 36


def test_optima_are_exact_without_noise() -> None:
    trials = screened(SHIFTS, rng=np.random.default_rng(1))
    rates = predict_optima(fit_surface(SIX, trials))
    assert rates.log2_lr == pytest.approx(levels(SIX) @ SHIFTS, abs=1e-6)
    assert rates.curvature == pytest.approx(0.012, abs=1e-9)
    assert rates.clipped == ()


def test_curvature_may_differ_with_moe() -> None:
    moe = levels(SIX)[:, 1]
    # Slopes are linear in the levels, so the optimum -slope / (2 curvature) is not; give the truth in slopes.
    trials = []
    for cell, rate in DESIGN:
        on = levels(SIX, [cell])[0]
        curvature = 0.012 + 0.006 * on[1]
        loss = 3.0 - 0.01 * (on @ SHIFTS) * rate + curvature * rate**2
        trials.append(Trial(cell=cell, log2_lr=rate, seed=0, loss=float(loss)))
    rates = predict_optima(fit_surface(SIX, trials))
    assert rates.curvature == pytest.approx(0.012 + 0.006 * moe, abs=1e-9)
    assert rates.log2_lr == pytest.approx(0.01 * (levels(SIX) @ SHIFTS) / (2 * rates.curvature), abs=1e-6)


def test_covariance_of_the_optima_is_what_repetition_shows() -> None:
    rng = np.random.default_rng(3)
    optima, stated = [], []
    for _ in range(1000):
        rates = predict_optima(fit_surface(SIX, screened(SHIFTS, sigma=0.001, rng=rng)))
        optima.append(rates.log2_lr)
        stated.append(np.diag(rates.covariance))
    ratio = np.var(optima, axis=0, ddof=1) / np.mean(stated, axis=0)
    assert 0.9 < ratio.mean() < 1.1
    far = np.abs(np.mean(optima, axis=0)) > 0.8
    assert 0.9 < ratio[far].mean() < 1.1, "far from the centre the error of the curvature counts"


def test_an_optimum_out_of_reach_is_held_and_named() -> None:
    rates = predict_optima(fit_surface(SIX, screened(SHIFTS * 4, rng=np.random.default_rng(4))))
    assert np.abs(rates.log2_lr).max() == pytest.approx(REACH)
    assert "moe" in rates.clipped


def test_missed_optima_widen_by_their_mean_square() -> None:
    rates = predict_optima(fit_surface(SIX, screened(SHIFTS, sigma=0.005, rng=np.random.default_rng(5))))
    weights = index_weights(SIX, "owen")
    rng = np.random.default_rng(6)
    misses = rng.multivariate_normal(np.zeros(48), rates.covariance, 40_000, method="eigh")
    simulated = ((misses**2 * rates.curvature @ weights.T) ** 2).mean(axis=0)
    assert missed_optimum_variance(rates, weights) == pytest.approx(simulated, rel=0.06)


def test_tuned_effects_keep_the_estimate_and_widen_the_interval() -> None:
    rates = predict_optima(fit_surface(SIX, screened(SHIFTS, sigma=0.005, rng=np.random.default_rng(7))))
    weights = index_weights(SIX, "owen")
    estimate, error = np.linspace(-0.05, 0.02, 6), np.full(6, 0.002)
    tuned = tuned_effects(estimate, error, df=17, rates=rates, weights=weights)
    extra = missed_optimum_variance(rates, weights)
    assert (tuned.estimate == estimate).all()
    assert tuned.high - estimate == pytest.approx(t_quantile(0.975, 17) * np.sqrt(0.002**2 + extra))
    in_log_cost = tuned_effects(estimate, error, df=17, rates=rates, weights=weights, nats_per_unit=0.3)
    assert in_log_cost.high - estimate == pytest.approx(t_quantile(0.975, 17) * np.sqrt(0.002**2 + extra / 0.09))
    with pytest.raises(ValueError, match="it is 1 for nats"):
        tuned_effects(estimate, error, df=17, rates=rates, weights=weights, nats_per_unit=0.0)
    assert ((tuned.learning_rate_share > 0) & (tuned.learning_rate_share < 1)).all()


def test_surfaces_that_cannot_be_fitted_are_refused() -> None:
    trials = screened(SHIFTS, rng=np.random.default_rng(8))
    with pytest.raises(ValueError, match="do not determine a surface"):
        fit_surface(SIX, [t for t in trials if t.log2_lr == 0])
    diverged = [*trials[:-1], Trial(cell=trials[-1].cell, log2_lr=1.5, seed=3, loss=math.inf)]
    with pytest.raises(ValueError, match=r"at \+1.5 octaves, seed 3, has loss inf; repeat it once"):
        fit_surface(SIX, diverged)
    upside_down = [Trial(cell=t.cell, log2_lr=t.log2_lr, seed=0, loss=-t.loss) for t in trials]
    with pytest.raises(ValueError, match="has no minimum"):
        predict_optima(fit_surface(SIX, upside_down))
    with pytest.raises(ValueError, match="at least 7"):
        screening_design(SIX, cells=6, rng=np.random.default_rng(0))


def search(counts: dict[int, int]) -> list[Trial]:
    return [
        Trial(cell=cell, log2_lr=-1.0 + k, seed=1, loss=3.0 - 0.1 * cell + 0.01 * (k - 1) ** 2)
        for cell, n in counts.items()
        for k in range(n)
    ]


def test_an_optimum_is_held_inside_the_screened_range() -> None:
    trials = [
        Trial(cell=cell, log2_lr=at, seed=0, loss=3 + 0.05 * (at - best) ** 2 + 1e-4 * (i % 2))
        for cell, best in zip(PAIR.cells, (0.2, 2.0, -2.0, 0.4), strict=True)
        for i, at in enumerate((-1.5, -0.5, 0.5, 1.5))
    ]
    found = predict_optima(fit_surface(PAIR, trials), low=-1.5, high=0.1)
    assert found.log2_lr.max() == 0.1
    assert found.log2_lr.min() >= -1.5
    free = predict_optima(fit_surface(PAIR, trials))
    beyond = [PAIR.label(cell) for cell, at in zip(PAIR.cells, free.log2_lr, strict=True) if not -1.5 <= at <= 0.1]
    assert found.clipped == tuple(beyond)


def test_a_few_variants_are_all_screened_and_of_many_enough() -> None:
    rng = np.random.default_rng(0)
    leave_one_out = PAIR.cells[1:]
    assert screened_cells(PAIR, leave_one_out, rng=rng) == leave_one_out
    chosen = screened_cells(SIX, SIX.cells, rng=rng)
    assert len(set(chosen)) == len(SIX.components) + 2
    on = np.hstack([np.ones((len(chosen), 1)), levels(SIX, chosen)])
    assert np.linalg.matrix_rank(on) == len(SIX.components) + 1
    with pytest.raises(ValueError, match="cannot be screened"):
        screened_cells(SIX, (SIX.full,), rng=rng)
