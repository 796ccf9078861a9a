"""The full recipe of a study, and the full recipe without each component: what figures set beside each other."""

from __future__ import annotations

from collections.abc import Mapping

from ablate.attribution.study.compare import StudyResult, VariantResult
from ablate.attribution.study.designed import cell_of, design_lattice
from ablate.components.component import ON
from ablate.report.names import arrow

MOST_ROWS = 16  # variants that a figure has a row for


def reference(result: StudyResult) -> VariantResult:
    """The variant that the others are set beside: the study's first, which is full or the dense end."""
    return result.variants[0]


def sides(result: StudyResult) -> Mapping[str, tuple[str, str]]:
    """What changes -> the variants with it and without it: of each comparison, else of each component left out of full.

    A component goes with what requires it. Without a pair of variants in the study there is none.
    """
    if result.comparisons:
        return {arrow(c): (c.with_variant, c.without_variant) for c in result.comparisons}
    if result.attribution is None:
        return {}
    parts = design_lattice(result.plan.variants, result.plan.factors)
    by_cell = {cell_of(parts, v.planned): v.name for v in result.variants}
    found = {}
    for i, name in enumerate(parts.components):
        rest = parts.full & ~(1 << i | parts.dependants(i))
        if parts.full in by_cell and rest in by_cell:
            found[name] = (by_cell[parts.full], by_cell[rest])
    return found


def ends(result: StudyResult) -> tuple[VariantResult, VariantResult] | None:
    """The variants with the most and with the fewest components on; None where there is one variant."""
    by_on = sorted(result.variants, key=lambda v: sum(level == ON for level in v.planned.levels.values()))
    return (by_on[-1], by_on[0]) if len(by_on) > 1 else None


def drawn(result: StudyResult) -> tuple[str, ...]:
    """The variants that a figure with a row for each shows: all, or of many the ends and each one left out."""
    if len(result.variants) <= MOST_ROWS:
        return tuple(v.name for v in result.variants)
    kept = {reference(result).name, *(name for pair in sides(result).values() for name in pair)}
    kept |= {v.name for v in ends(result) or ()}
    return tuple(v.name for v in result.variants if v.name in kept)
