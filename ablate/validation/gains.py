"""Checks of effects in compute: compute-equivalent gain, two-stage learning rates, trends over a ladder of sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ablate.attribution.gain import learning_rate
from ablate.attribution.gain.compute_gain import quadratic_coefficients, solve_descending
from ablate.attribution.gain.scale import SizeEffect, fit_trend, predict
from ablate.attribution.indices import index_weights
from ablate.attribution.lattice import Floats, Lattice
from ablate.attribution.verdicts import t_quantile
from ablate.validation.check import TRUTHS, Check, in_chunks, loss_lattice, truth_table
from ablate.validation.designs import coverage_check, planned_lattice
from ablate.validation.estimators import independent_plan
from ablate.validation.simulated import LossCurve


def check_compute_gain(rng: np.random.Generator, simulations: int) -> list[Check]:
    """Quadratic inversion at an estimated target: three decayed branches a run, trunk and branch noise .0035 each."""
    out = []
    # The bar names three gains; at 0.30 the quadratic is farthest from a power law between its points.
    for gain, seeds, barred in ((0.02, 3, True), (0.15, 5, True), (0.50, 5, True), (0.30, 5, False)):
        estimates = simulated_gains(gain, seeds, rng, simulations)
        mean, error = estimates.mean(axis=1), estimates.std(axis=1, ddof=1) / seeds**0.5
        covered = float((np.abs(mean - gain) <= t_quantile(0.975, seeds - 1) * error).mean())
        bias = float(mean.mean() - gain)
        out.append(
            Check(
                name="compute-equivalent gain, quadratic in ln D",
                setting=f"ln gain {gain}, {seeds} seeds",
                measured={"coverage": covered, "bias": bias},
                bar="coverage >= 0.93, bias within 0.003" if barred else "none: the largest bias of the range",
                met=not barred or (covered >= 0.93 and abs(bias) <= 0.003),
                simulations=simulations,
            )
        )
    return out


def simulated_gains(gain: float, seeds: int, rng: np.random.Generator, simulations: int) -> Floats:
    """(simulations, seeds) paired gains at the baseline's mean loss at its full budget; see `token_gain`."""
    curve = LossCurve()
    log_tokens = np.log(np.array([0.25, 0.5, 1.0])) + np.log(curve.reference_tokens)
    centre = log_tokens.mean()
    losses = []
    for of_variant in (0.0, gain):
        trunk = rng.normal(0.0, 0.0035, (simulations, seeds, 1))
        losses.append(curve.loss(log_tokens, of_variant) + trunk + rng.normal(0.0, 0.0035, (simulations, seeds, 3)))
    target = losses[0][:, :, -1].mean(axis=1, keepdims=True)
    base, variant = (solve_descending(quadratic_coefficients(log_tokens - centre, loss), target) for loss in losses)
    return base - variant


def check_learning_rate(rng: np.random.Generator, simulations: int) -> list[Check]:
    """24 screening runs, then the lattice at predicted optima; curvature equal, or 30 % (sd) different per variant."""
    game = loss_lattice()
    owen = index_weights(game, "owen")
    plan = independent_plan(game, planned_lattice(game), owen)
    design = learning_rate.screening_design(game, rng=rng)
    out = []
    for label, spread in (("same curvature", 0.0), ("curvature differs by 30 %", 0.3)):
        for kind in TRUTHS:
            truths = -truth_table(game, kind, rng, simulations)
            excess, charge = _screened(game, design, truths, spread, rng)
            plain = in_chunks(plan, truths, owen, lambda n: rng.normal(0.0, 0.005, (n, len(plan.cells))), excess)
            charged = replace(plain, standard_errors=np.sqrt(plain.standard_errors**2 + charge))
            check = coverage_check("two-stage learning rate (78 runs)", f"{label}, {kind}", charged, 0.92)
            uncharged = float(plain.coverage().min())
            out.append(replace(check, measured={**check.measured, "worst without the charge": uncharged}))
    return out


def _screened(
    game: Lattice, design: tuple[tuple[int, float], ...], truths: Floats, spread: float, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Screen every study: excess loss at the predicted optima (S, C), and the variance charged for it (S, k)."""
    on = learning_rate.levels(game)
    where = game.index([cell for cell, _ in design])
    rates = np.array([rate for _, rate in design])
    excess, charge = np.zeros_like(truths), np.zeros((len(truths), on.shape[1]))
    for s, truth in enumerate(truths):
        best = on @ rng.normal(0.0, 0.5, on.shape[1])
        curvature = 0.012 * np.exp(rng.normal(0.0, spread, len(on)))
        loss = truth[where] + curvature[where] * (rates - best[where]) ** 2 + rng.normal(0.0, 0.005, len(design))
        trials = [
            learning_rate.Trial(cell=cell, log2_lr=rate, seed=0, loss=float(y))
            for (cell, rate), y in zip(design, loss, strict=True)
        ]
        predicted = learning_rate.predict_optima(learning_rate.fit_surface(game, trials))
        excess[s] = curvature * (predicted.log2_lr - best) ** 2
        charge[s] = learning_rate.missed_optimum_variance(predicted, index_weights(game, "owen"))
    return excess, charge


def check_scale(rng: np.random.Generator, simulations: int) -> list[Check]:
    """Prediction beyond a ladder of four sizes over 1.5 decades, standard error .0025 at each, for three truths.

    An effect that starts beyond the ladder is missed by any interval; it is here to say so.
    """
    x = np.array([0.0, 0.5, 1.0, 1.5])
    truths: dict[str, Callable[[Floats], Floats]] = {
        "linear": lambda d: 0.03 + 0.01 * d,
        "fades by 0.7 a decade": lambda d: 0.03 * 0.7**d,
        "starts half a decade beyond": lambda d: 0.03 / (1.0 + np.exp(-(d - 2.0) / 0.2)),
    }
    out = []
    for name, truth in truths.items():
        seen = truth(x) + rng.normal(0.0, 0.0025, (simulations, 4))
        for assumed in (None, 0.0):
            inside = np.zeros(3)
            for row in seen:
                sizes = [
                    SizeEffect(flops=10 ** (17 + d), estimate=float(e), standard_error=0.0025)
                    for d, e in zip(x, row, strict=True)
                ]
                trend = fit_trend(sizes, tau=assumed)
                for i, beyond in enumerate((0.5, 1.0, 2.0)):
                    band = predict(trend, 10 ** (18.5 + beyond))
                    inside[i] += band.low <= float(truth(np.array(1.5 + beyond))) <= band.high
            coverage = inside / simulations
            barred = name == "linear"
            out.append(
                Check(
                    name="ladder of four sizes, prediction beyond it",
                    setting=f"{name}, spread between sizes {'estimated' if assumed is None else 'taken as none'}",
                    measured={
                        f"coverage at +{d} decades": float(c) for d, c in zip((0.5, 1, 2), coverage, strict=True)
                    },
                    bar=">= 0.94" if barred else "none: how far the line may be trusted",
                    met=not barred or bool(coverage.min() >= 0.94),
                    simulations=simulations,
                )
            )
    return out
