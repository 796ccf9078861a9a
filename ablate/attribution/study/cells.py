"""The cells of a study with factors: which variants a design compares at one combination of levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ablate.runs.factors import PRESET, FactorFacts
from ablate.runs.plan import Plan, PlannedVariant

FACTORIAL = "factorial"  # the design that factors alone make
LATTICES = ("lattice", "optimal", "staged")  # designs in which a factor of two levels is one more player


@dataclass(frozen=True, kw_only=True, slots=True)
class DesignCell:
    """The variants that one design lays out, the reference first, at one combination of levels of the others."""

    label: str  # as in "preset=cpu"; "" where nothing is crossed with the design
    levels: Mapping[str, str]  # factor -> its level here
    variants: tuple[PlannedVariant, ...]


def crossed_factors(plan: Plan) -> tuple[FactorFacts, ...]:
    """The factors whose levels each have the whole design; the others are part of it."""
    if plan.design.name == FACTORIAL:
        return ()
    if plan.design.name in LATTICES:
        return tuple(f for f in plan.factors if len(f.levels) > 2 or f.components or f.name == PRESET)
    return plan.factors


def design_cells(plan: Plan) -> tuple[DesignCell, ...]:
    """A cell for each combination of levels that the design is crossed with; one where there are no factors."""
    crossed = crossed_factors(plan)
    groups: dict[tuple[str, ...], list[PlannedVariant]] = {}
    for planned in plan.variants:
        groups.setdefault(tuple(planned.levels[f.name] for f in crossed), []).append(planned)
    return tuple(
        DesignCell(
            label=", ".join(f"{f.name}={level}" for f, level in zip(crossed, key, strict=True)),
            levels={f.name: level for f, level in zip(crossed, key, strict=True)},
            variants=tuple(group),
        )
        for key, group in groups.items()
    )


def sizes_apart(plan: Plan) -> tuple[tuple[str, ...], ...]:
    """Names of the variants that a shared seed makes pairs of: two sizes of a ladder never are, and break no pair."""
    groups: dict[str, list[str]] = {}
    for planned in plan.variants:
        groups.setdefault(planned.levels.get(PRESET, ""), []).append(planned.name)
    return tuple(tuple(group) for group in groups.values())


def same_text(plan: Plan) -> bool:
    """Whether all variants are judged in the same tokens, so that nats per token can be compared."""
    return all(not v.corpus for v in plan.variants)
