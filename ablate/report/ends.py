"""The full recipe of a study, and the full recipe without each component: what figures set beside each other."""

from __future__ import annotations

from collections.abc import Mapping

from ablate.attribution.study.compare import StudyResult, VariantResult
from ablate.attribution.study.designed import cell_of, design_lattice
from ablate.report.names import arrow


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
