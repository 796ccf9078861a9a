"""Checks of the designs: coverage of their intervals, a component that does nothing, what the planner promises."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ablate.attribution.design.designs import check_seeds
from ablate.attribution.design.exchange import lattice_design, optimal_cells
from ablate.attribution.design.planning import plan as plan_study
from ablate.attribution.gain.learning_rate import levels
from ablate.attribution.indices import index_weights
from ablate.attribution.lattice import Floats, Lattice
from ablate.attribution.verdicts import max_t_critical
from ablate.validation.check import TRUTHS, Check, in_chunks, loss_lattice, truth_table, with_replicated_ends
from ablate.validation.estimators import Outcome, StudyPlan, blocked_plan, independent_plan
from ablate.validation.simulated import Noise, TruthKind, run_noise


def check_lattice(rng: np.random.Generator, simulations: int) -> list[Check]:
    """All 48 variants once and the ends replicated, nothing assumed: each interval alone, and all together."""
    game = loss_lattice()
    owen = index_weights(game, "owen")
    plan = independent_plan(game, planned_lattice(game), owen)
    together = max_t_critical(plan.weights @ plan.weights.T, plan.df)
    out = []
    for kind in TRUTHS:
        for sigma in (0.003, 0.005):
            outcome = _independent(plan, game, kind, sigma, rng, simulations)
            setting = f"{kind}, sigma {sigma}"
            out.append(coverage_check("lattice of 48, exact (54 runs)", setting, outcome, 0.94, 0.96))
            all_inside = float(outcome.covered(together).all(axis=1).mean())
            out.append(
                Check(
                    name="lattice of 48, simultaneous max-t",
                    setting=setting,
                    measured={"joint coverage": all_inside, "critical value": together},
                    bar="all effects together >= 0.94",
                    met=all_inside >= 0.94,
                    simulations=simulations,
                )
            )
    critical = max_t_critical(owen @ owen.T, np.inf)
    known = critical * 0.005 * float(np.sqrt((owen**2).sum(axis=1).max()))
    out.append(
        Check(
            name="max-t with known noise, 48 runs",
            setting="sigma 0.005",
            measured={"critical value": critical, "half-width": known},
            bar="2.62 and .0060 to their last digit",
            met=abs(critical - 2.62) <= 0.005 and abs(known - 0.0060) <= 0.0001,
            simulations=0,
        )
    )
    return out


def check_optimal(rng: np.random.Generator, simulations: int, *, size: int = 32) -> list[Check]:
    """The A-optimal design under the assumption of pairs at most, also where that assumption is wrong."""
    game = loss_lattice()
    cells = with_replicated_ends(optimal_cells(game, size, order=2)[0], game)
    plan = independent_plan(game, cells, index_weights(game, "owen"), order=2)
    return [
        coverage_check(
            f"A-optimal {size}, interactions <= 2 ({size + 6} runs)",
            f"{kind}, sigma {sigma}",
            _independent(plan, game, kind, sigma, rng, simulations),
            0.93,
        )
        for kind in TRUTHS
        for sigma in (0.003, 0.005)
    ]


def check_placebo(rng: np.random.Generator, simulations: int) -> list[Check]:
    """A component that does nothing: how often its interval leaves out zero."""
    game = loss_lattice()
    placebo = game.components.index("mtp")
    without = game.index([cell & ~(1 << placebo) for cell in game.cells])
    plan = independent_plan(game, planned_lattice(game), index_weights(game, "owen"))
    out = []
    for kind in TRUTHS:
        truths = truth_table(game, kind, rng, simulations)[:, without]
        outcome = in_chunks(
            plan, truths, index_weights(game, "owen"), lambda n: rng.normal(0.0, 0.005, (n, len(plan.cells)))
        )
        false = 1.0 - float(outcome.coverage()[placebo])
        out.append(
            Check(
                name="A/A placebo component",
                setting=f"{kind}, sigma 0.005",
                measured={"false positives": false},
                bar="<= 0.06",
                met=false <= 0.06,
                simulations=simulations,
            )
        )
    return out


def check_blocks(rng: np.random.Generator, simulations: int) -> list[Check]:
    """12 blocks of 4 variants on a common seed, against one seed for everything, which the planner must refuse."""
    game = loss_lattice()
    owen = index_weights(game, "owen")
    runs = lattice_design(game, extra_runs=0).runs
    cells, blocks = tuple(run.cell for run in runs), np.array([run.block for run in runs])
    plan = blocked_plan(game, cells, blocks.tolist(), owen)
    naive = independent_plan(game, game.cells, owen)
    one_seed = np.zeros(len(game.cells), dtype=np.int64)
    out = []
    for tau in (0.0, 0.004, 0.008):
        noise = Noise(seed_sd=0.02, slope_sd=tau, run_sd=0.004)
        for kind in TRUTHS:
            truths = truth_table(game, kind, rng, simulations)
            outcome = in_chunks(plan, truths, owen, _seeded(levels(game, cells), blocks, noise, rng))
            out.append(coverage_check("12 blocks x 4, CR2, exact", f"{kind}, tau {tau}", outcome, 0.94))
        truths = truth_table(game, "two-way", rng, simulations)
        shared = in_chunks(naive, truths, owen, _seeded(levels(game), one_seed, noise, rng))
        out.append(
            Check(
                name="one seed for all 48",
                setting=f"two-way, tau {tau}",
                measured={"worst coverage": float(shared.coverage().min()), "half-width": shared.half_width()},
                bar="refused by the planner",
                met=_refused(game.cells),
                simulations=simulations,
            )
        )
    return out


def check_planner(rng: np.random.Generator, simulations: int) -> list[Check]:
    """Runs the planner asks for at sigma .005 and a half-width of .0045, whether they keep it, and its refusal."""
    game = loss_lattice()
    owen = index_weights(game, "owen")
    out = []
    for order, most, promise in ((None, 54, "nothing assumed"), (2, 38, "interactions <= 2 assumed")):
        design = plan_study(game, precision=0.0045, sigma=0.005, order=order)
        plan = independent_plan(game, tuple(run.cell for run in design.runs), owen, order=order)
        outcome = _independent(plan, game, "two-way", 0.005, rng, simulations)
        runs, promised = len(design.runs), design.half_width(0.005)
        out.append(
            Check(
                name="planner at half-width .0045, sigma .005",
                setting=promise,
                measured={
                    "runs": float(runs),
                    "promised half-width": promised,
                    "mean half-width": outcome.half_width(),
                    "worst coverage": float(outcome.coverage().min()),
                },
                bar=f"<= {most} runs",
                met=runs <= most and promised <= 0.0045,
                simulations=simulations,
            )
        )
        refused = _over_budget(game, order, runs - 1)
        out.append(
            Check(
                name="planner with one run too few",
                setting=promise,
                measured={"refused": float(refused)},
                bar="refused, with the number of runs needed",
                met=refused,
                simulations=0,
            )
        )
    return out


def planned_lattice(game: Lattice) -> tuple[int, ...]:
    """The lattice design of `plan` with a seed for every run: 48 variants and six repeats."""
    return tuple(run.cell for run in lattice_design(game, block_size=1).runs)


def coverage_check(name: str, setting: str, outcome: Outcome, low: float, high: float = 1.0) -> Check:
    coverage = outcome.coverage()
    return Check(
        name=name,
        setting=setting,
        measured={
            "worst coverage": float(coverage.min()),
            "best coverage": float(coverage.max()),
            "half-width": outcome.half_width(),
        },
        bar=f"every effect in [{low}, {high}]" if high < 1 else f"every effect >= {low}",
        met=bool(low <= coverage.min() and coverage.max() <= high),
        simulations=len(outcome.errors),
    )


def _independent(
    plan: StudyPlan, game: Lattice, kind: TruthKind, sigma: float, rng: np.random.Generator, simulations: int
) -> Outcome:
    truths = truth_table(game, kind, rng, simulations)
    return in_chunks(plan, truths, index_weights(game, "owen"), lambda n: rng.normal(0.0, sigma, (n, len(plan.cells))))


def _seeded(on: Floats, seeds: np.ndarray, noise: Noise, rng: np.random.Generator) -> Callable[[int], Floats]:
    return lambda n: run_noise(on, seeds, noise, rng, simulations=n)


def _refused(cells: tuple[int, ...]) -> bool:
    try:
        check_seeds(cells, [0] * len(cells))
    except ValueError:
        return True
    return False


def _over_budget(game: Lattice, order: int | None, budget: int) -> bool:
    try:
        plan_study(game, precision=0.0045, sigma=0.005, order=order, budget=budget)
    except ValueError as refusal:
        return f"{budget + 1} runs" in str(refusal)
    return False
