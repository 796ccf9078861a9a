"""Which components change each other's worth: every pair of a design, and the four means behind the strongest two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ablate.attribution.lattice import Lattice
from ablate.attribution.results import Interaction
from ablate.attribution.study.compare import LOSS, StudyResult
from ablate.attribution.study.designed import cell_of, design_lattice

SHOWN = 2  # four-point figures


@dataclass(frozen=True, kw_only=True, slots=True)
class FourPoints:
    """Mean loss at the four levels of a pair, over every setting of the others at which all four have runs."""

    components: tuple[str, str]
    means: Mapping[tuple[bool, bool], float]  # (first is on, second is on) -> nats per token
    n_settings: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Interplay:
    """`pairs` has those without a number too, such as nested ones; `resolved` the names of those that stand out."""

    components: tuple[str, ...]
    pairs: tuple[Interaction, ...]
    resolved: frozenset[tuple[str, str]]
    strongest: tuple[FourPoints, ...]

    @property
    def known(self) -> tuple[Interaction, ...]:
        """Pairs with an estimate, the largest first."""
        found = [pair for pair in self.pairs if pair.number.estimate is not None]
        return tuple(sorted(found, key=lambda pair: -abs(pair.number.estimate or 0.0)))


def interplay(result: StudyResult) -> Interplay | None:
    """Of a design that tells two-component interactions; None for others."""
    found = result.attribution
    if found is None or not any(pair.number.estimate is not None for pair in found.interactions):
        return None
    alpha = 1 - result.plan.interval_confidence
    names = tuple(dict.fromkeys(name for pair in found.interactions for name in pair.components))
    ordered = tuple(name for name in found.effects if name in names)
    bare = Interplay(
        components=ordered,
        pairs=found.interactions,
        resolved=frozenset(
            p.components for p in found.interactions if p.adjusted_p is not None and p.adjusted_p < alpha
        ),
        strongest=(),
    )
    parts = design_lattice(result.plan.variants, result.plan.factors)
    losses = {cell_of(parts, v.planned): v.metrics[LOSS].mean for v in result.variants if LOSS in v.metrics}
    points = (_four(parts, losses, pair.components) for pair in bare.known)
    strongest = [each for each in points if each is not None][:SHOWN]
    return Interplay(components=ordered, pairs=bare.pairs, resolved=bare.resolved, strongest=tuple(strongest))


def _four(parts: Lattice, losses: Mapping[int, float], pair: tuple[str, str]) -> FourPoints | None:
    first, second = (parts.mask([name]) for name in pair)
    corners = {(a, b): first * a | second * b for a in (False, True) for b in (False, True)}
    settings = [
        cell
        for cell in parts.cells
        if not cell & (first | second) and all(cell | corner in losses for corner in corners.values())
    ]
    if not settings:
        return None
    means = {at: sum(losses[cell | corner] for cell in settings) / len(settings) for at, corner in corners.items()}
    return FourPoints(components=pair, means=means, n_settings=len(settings))
