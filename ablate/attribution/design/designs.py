"""Designs: which variants run on which seeds, and how precise every effect will be before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ablate.attribution.estimation.blocked import blocked_weights
from ablate.attribution.estimation.functionals import run_weights
from ablate.attribution.indices import index_weights, undefined_reason
from ablate.attribution.lattice import Floats, Lattice, model_matrix
from ablate.attribution.verdicts import check_confidence, t_quantile

NOISE_ORDER = 3  # the exact lattice takes its noise from what interactions up to this order leave over


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run of a design: a variant on the seed of its block. Runs of a block share data order and initial values."""

    cell: int  # bitmask over the components of the lattice
    block: int  # index of the seed, 0, 1, ...
    stage: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """Runs and what they will tell. Multipliers are variances in units of the noise variance of one run."""

    name: str
    lattice: Lattice
    runs: tuple[Run, ...]
    index: str  # the effect the design is for: "last", "first" or "owen"
    order: int | None  # interactions above this order are assumed away; None: nothing assumed
    layout: str  # "complete", "blocked" or "independent", as in `estimates.seed_layout`
    components: tuple[str, ...]  # the components whose effects it estimates
    variance_multiplier: tuple[float, ...]  # per component
    df: int  # degrees of freedom of the intervals
    stages: int = 1  # times the results are read; each reading spends an equal part of alpha (Bonferroni)

    @property
    def blocks(self) -> int:
        """Number of seeds."""
        return len({run.block for run in self.runs})

    @property
    def cells(self) -> tuple[int, ...]:
        """Distinct variants, in the order of their first run."""
        return tuple(dict.fromkeys(run.cell for run in self.runs))

    def stage_confidence(self, confidence: float = 0.95) -> float:
        """Confidence of the intervals read after each stage, so that all stages together keep the given one."""
        check_confidence(confidence)
        return 1 - (1 - confidence) / self.stages

    def half_widths(self, sigma: float, confidence: float = 0.95) -> dict[str, float]:
        """Half-width of every effect's t-interval when one run has this noise sd (unit of the metric).

        sigma is what pairing leaves: the sd of a run about its variant and seed where a block shares a seed
        (seed sd * sqrt(1 - correlation)), the whole seed sd where every run has its own.
        """
        if not (np.isfinite(sigma) and sigma >= 0):
            raise ValueError(f"sigma {sigma} was given; it is the noise sd of one run, 0 or more")
        t = t_quantile(0.5 + self.stage_confidence(confidence) / 2, self.df)
        return {
            name: t * sigma * multiplier**0.5
            for name, multiplier in zip(self.components, self.variance_multiplier, strict=True)
        }

    def half_width(self, sigma: float, confidence: float = 0.95) -> float:
        """Half-width of the least precise effect."""
        return max(self.half_widths(sigma, confidence).values())


def make_design(
    name: str,
    lattice: Lattice,
    runs: Sequence[Run],
    *,
    index: str,
    order: int | None = None,
    components: Sequence[str] | None = None,
    stages: int = 1,
) -> Design:
    """A design from its runs, with the precision it will reach.

    ValueError: an infeasible cell, one seed for all variants, seeds that leave no degree of freedom, or an effect that
    the runs do not determine.
    """
    lattice.index([run.cell for run in runs])
    layout = check_seeds([run.cell for run in runs], [run.block for run in runs])
    kept = tuple(components or lattice.components)
    rows = [lattice.components.index(component) for component in kept]
    reason = undefined_reason(lattice, index)
    if reason:
        raise ValueError(reason)
    functionals = index_weights(lattice, index)[rows]
    weights, df = _planned_weights(name, lattice, runs, functionals, order, layout)
    return Design(
        name=name, lattice=lattice, runs=tuple(runs), index=index, order=order, layout=layout, components=kept,
        variance_multiplier=tuple(np.square(weights).sum(axis=1).tolist()), df=df,
        stages=stages,
    )  # fmt: skip


def check_seeds(cells: Sequence[int], blocks: Sequence[int]) -> str:
    """Layout of the seeds: "complete", "blocked" or "independent". ValueError: one seed for all, or one run twice."""
    if len(set(zip(cells, blocks, strict=True))) < len(cells):
        raise ValueError("a variant runs twice on one seed, which would give the same number; use another seed")
    members: dict[int, set[int]] = {}
    for cell, block in zip(cells, blocks, strict=True):
        members.setdefault(block, set()).add(cell)
    if len(members) == 1:
        raise ValueError(
            f"one seed for all {len(cells)} runs gives intervals that are far too narrow, because an effect's change "
            f"from seed to seed stays hidden; spread the runs over at least two seeds"
        )
    if all(found == set(cells) for found in members.values()):
        return "complete"
    return "independent" if all(len(found) == 1 for found in members.values()) else "blocked"


def _planned_weights(
    name: str, lattice: Lattice, runs: Sequence[Run], functionals: Floats, order: int | None, layout: str
) -> tuple[Floats, int]:
    """Weights over runs (k, R) and degrees of freedom of the analysis that `estimates.estimate` will make."""
    cells = [run.cell for run in runs]
    seeds = [run.block for run in runs]
    if layout == "blocked":
        plan = blocked_weights(lattice, cells, seeds, functionals, order)
        df = len({s for s in seeds if seeds.count(s) > 1}) - 1 - len(lattice.components)
        if df < 1:
            raise ValueError(
                f"{name}: {df + 1 + len(lattice.components)} blocks of seeds leave no degree of freedom with "
                f"{len(lattice.components)} components; use at least {len(lattice.components) + 2} blocks"
            )
        if not plan.determined.all():
            raise ValueError(f"{name}: these blocks leave an effect undetermined; use other blocks or more runs")
        return plan.weights, df
    exact = run_weights(lattice, cells, functionals, order)
    if any(exact.reasons):
        raise ValueError(f"{name}: {next(reason for reason in exact.reasons if reason)}")
    if layout == "complete":
        return exact.weights, len(set(seeds)) - 1
    limit = order if order is not None else NOISE_ORDER
    df = len(cells) - int(np.linalg.matrix_rank(model_matrix(lattice, limit, cells)))
    if df < 1:
        raise ValueError(f"{name}: {len(cells)} runs leave no degree of freedom for the noise; add runs")
    return exact.weights, df


def one(lattice: Lattice, component: str, seeds: int) -> Design:
    """Full against full without one component (and what needs it), every seed on both."""
    i = lattice.components.index(component) if component in lattice.components else -1
    off = lattice.full & ~(lattice.mask([component]) | lattice.dependants(i))
    return _complete("one", lattice, [lattice.full, off], seeds, index="last", components=(component,))


def leave_one_out(lattice: Lattice, seeds: int) -> Design:
    """Full against full without each component and its dependants, every seed on all."""
    return _complete("leave-one-out", lattice, drop_cells(lattice), seeds, index="last")


def add_one_in(lattice: Lattice, seeds: int) -> Design:
    """Each component added to its bare prerequisites, from none, every seed on all."""
    return _complete("add-one-in", lattice, add_cells(lattice), seeds, index="first")


def first_last(lattice: Lattice, seeds: int) -> Design:
    """Add-one-in and leave-one-out together; their mean is the Owen-precedence value if interactions stop at pairs."""
    cells = list(dict.fromkeys([*add_cells(lattice), *drop_cells(lattice)]))
    return _complete("first-last", lattice, cells, seeds, index="owen", order=2)


def _complete(
    name: str, lattice: Lattice, cells: Sequence[int], seeds: int, *, index: str, order: int | None = None,
    components: Sequence[str] | None = None,
) -> Design:  # fmt: skip
    if seeds < 2:
        raise ValueError(f"{name}: {seeds} seed was given; an interval needs at least two seeds")
    runs = [Run(cell=cell, block=seed) for seed in range(seeds) for cell in cells]
    return make_design(name, lattice, runs, index=index, order=order, components=components)


def drop_cells(lattice: Lattice) -> list[int]:
    """Cells of a leave-one-out table: full, and full without each component and its dependants."""
    without = [lattice.full & ~(1 << i | lattice.dependants(i)) for i in range(len(lattice.components))]
    return list(dict.fromkeys([lattice.full, *without]))


def add_cells(lattice: Lattice) -> list[int]:
    """Cells of an add-one-in table: each component on its bare prerequisites, and those prerequisites."""
    alone = [need | 1 << i for i, need in enumerate(lattice.needs)]
    return list(dict.fromkeys([*lattice.needs, *alone]))
