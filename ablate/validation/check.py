"""One line of the coverage table, and what most lines share: the six loss components, random games, simulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import numpy as np

from ablate.attribution.lattice import Floats, Lattice, lattice
from ablate.validation.estimators import Outcome, StudyPlan, simulate
from ablate.validation.simulated import TruthKind, random_game

TRUTHS: tuple[TruthKind, ...] = get_args(TruthKind)
LOSS_COMPONENTS = ("mla", "moe", "aux-free", "mtp", "fp8", "distill")
GAMES = 2000  # different random truths; further studies go through them again with new noise
_CHUNK = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One line of the coverage table."""

    name: str
    setting: str
    measured: dict[str, float]  # named numbers; the first is the one the bar is about
    bar: str
    met: bool
    simulations: int


def loss_lattice() -> Lattice:
    """The six components that can move the loss: 48 feasible variants."""
    return lattice(LOSS_COMPONENTS, {"aux-free": ["moe"]})


def with_replicated_ends(cells: tuple[int, ...], game: Lattice) -> tuple[int, ...]:
    """Cells with three more runs of each end, which give the noise."""
    return (*cells, *([0] * 3), *([game.full] * 3))


def truth_table(game: Lattice, kind: TruthKind, rng: np.random.Generator, simulations: int) -> Floats:
    """(simulations, C) random games of one kind."""
    games = np.array([random_game(game, kind, rng) for _ in range(min(GAMES, simulations))])
    return games[np.arange(simulations) % len(games)]


def in_chunks(
    plan: StudyPlan, truths: Floats, targets: Floats, noise: Callable[[int], Floats], excess: Floats | None = None
) -> Outcome:
    """`simulate` without holding every study's squares at once; `excess` (S, C) is added to the runs only."""
    parts = []
    where = plan.lattice.index(list(plan.cells))
    for start in range(0, len(truths), _CHUNK):
        some = truths[start : start + _CHUNK]
        shake = noise(len(some))
        if excess is not None:
            shake = shake + excess[start : start + _CHUNK][:, where]
        parts.append(simulate(plan, some, shake, targets))
    return Outcome(
        errors=np.concatenate([p.errors for p in parts]),
        standard_errors=np.concatenate([p.standard_errors for p in parts]),
        df=plan.df,
    )
