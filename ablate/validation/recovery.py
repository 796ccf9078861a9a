"""End-to-end recovery: whole simulated studies, from decayed losses and timings to the channel table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ablate.attribution.design.exchange import lattice_design
from ablate.attribution.estimation.estimates import Observations, estimate
from ablate.attribution.gain.channels import ChannelTable, MeasuredRun, VariantSpeed, measured_table
from ablate.attribution.gain.compute_gain import DecayedCurve, log_tokens_to, target_losses
from ablate.attribution.indices import index_weights, total_weights
from ablate.attribution.lattice import Floats, Lattice
from ablate.validation.check import TRUTHS, Check, loss_lattice
from ablate.validation.simulated import Noise, SimulatedTrainer, TruthKind, random_trainer

TOKENS = (0.5e9, 1e9, 2e9)  # decayed branches at a quarter, a half and all of the budget
FRESH = Noise(run_sd=0.0035, branch_sd=0.0035, rate_sd=0.007)
PAIRED = Noise(seed_sd=0.02, slope_sd=0.004, run_sd=0.0035, branch_sd=0.0035, rate_sd=0.007)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SimulatedStudy:
    """What was measured, and what a perfect measurement at the same target loss would give."""

    measured: ChannelTable
    truth: Floats  # (K, 3) true gain of each component in each channel
    totals: Floats  # (3,) gap between the two ends in each channel, estimated directly and not as a sum of effects


def train_study(
    trainer: SimulatedTrainer, runs: Sequence[tuple[int, int]], *, restarts: int = 2
) -> tuple[list[MeasuredRun], dict[int, VariantSpeed]]:
    """Train every (cell, seed) and time every variant; runs of one seed share a cluster."""
    game = trainer.lattice
    seeds = Counter(seed for _, seed in runs)
    trained = [
        MeasuredRun(
            cell=cell,
            cluster=seed if seeds[seed] > 1 else None,
            curve=trainer.train(int(game.index(cell)[0]), seed=seed, tokens=TOKENS),
        )
        for cell, seed in runs
    ]
    speeds = {
        cell: VariantSpeed(
            flops_per_token=float(trainer.flops_per_token[i]),
            log_flops_per_s=tuple(float(v) for v in trainer.rates(i, restarts=restarts)),
        )
        for i, cell in enumerate(game.cells)
    }
    return trained, speeds


def headline_target(game: Lattice, runs: Sequence[MeasuredRun]) -> float:
    """The worst variant's decayed loss at its full budget."""
    by_variant: dict[str, list[DecayedCurve]] = {}
    for run in runs:
        by_variant.setdefault(game.label(run.cell), []).append(run.curve)
    return target_losses(by_variant)[0].loss


def recover(trainer: SimulatedTrainer, runs: Sequence[tuple[int, int]]) -> SimulatedStudy:
    """One study from training to table."""
    trained, speeds = train_study(trainer, runs)
    target = headline_target(trainer.lattice, trained)
    return SimulatedStudy(
        measured=measured_table(trainer.lattice, trained, speeds, target),
        truth=index_weights(trainer.lattice, "owen") @ trainer.true_channels(),
        totals=_measured_totals(trainer.lattice, trained, speeds, target),
    )


def _measured_totals(
    game: Lattice, runs: Sequence[MeasuredRun], speeds: dict[int, VariantSpeed], target: float
) -> Floats:
    seen = Observations(
        cells=tuple(run.cell for run in runs),
        values=tuple(-log_tokens_to(run.curve, target) for run in runs),
        clusters=tuple(run.cluster for run in runs),
    )
    tokens = estimate(game, seen, {"total": total_weights(game)}).lines["total"].value
    none, full = speeds[0], speeds[game.full]
    flops = np.log(none.flops_per_token / full.flops_per_token)
    return np.array([tokens, flops, np.mean(full.log_flops_per_s) - np.mean(none.log_flops_per_s)], dtype=np.float64)


def check_recovery(rng: np.random.Generator, simulations: int) -> list[Check]:
    """Coverage of the components' totals, and how far the table is from adding up; seeds fresh and in blocks."""
    game = loss_lattice()
    layouts = (
        ("54 runs, fresh seeds", FRESH, [(r.cell, r.block) for r in lattice_design(game, block_size=1).runs]),
        ("12 blocks x 4", PAIRED, [(r.cell, r.block) for r in lattice_design(game, extra_runs=0).runs]),
    )
    out = []
    for label, noise, runs in layouts:
        for kind in TRUTHS:
            inside, gap = _studies(game, kind, noise, runs, rng, simulations)
            worst = float(inside.mean(axis=0).min())
            out.append(
                Check(
                    name="end to end: log-seconds factor of each component",
                    setting=f"{label}, {kind}",
                    measured={"coverage": float(inside.mean()), "worst effect": worst, "largest gap": gap},
                    bar="coverage >= 0.94, rows and columns add up to 1e-9",
                    met=bool(inside.mean() >= 0.94) and gap <= 1e-9,
                    simulations=simulations,
                )
            )
    return out


def _studies(
    game: Lattice,
    kind: TruthKind,
    noise: Noise,
    runs: Sequence[tuple[int, int]],
    rng: np.random.Generator,
    simulations: int,
) -> tuple[Floats, float]:
    """(simulations, K) whether each interval holds the truth, and the largest failure to add up."""
    inside, gap = np.zeros((simulations, len(game.components))), 0.0
    for s in range(simulations):
        study = recover(random_trainer(game, kind, rng, noise=noise), runs)
        table = study.measured
        low, high = np.moveaxis(table.component_intervals(), -1, 0)
        inside[s] = (low <= study.truth.sum(axis=1)) & (study.truth.sum(axis=1) <= high)
        closed_form = np.abs(table.gains[:, 1] - study.truth[:, 1]).max()
        columns = np.abs(table.by_channel - study.totals).max()
        gap = max(gap, float(closed_form), float(columns), abs(float(table.by_component.sum() - study.totals.sum())))
    return inside, gap
