"""The effect of each component at each combination of levels that a design is crossed with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ablate.attribution.estimation.pairs import compare_pairs
from ablate.attribution.results import Number
from ablate.attribution.study.cells import DesignCell, crossed_factors, design_cells, same_text
from ablate.attribution.study.designed import attribute_design
from ablate.runs.plan import Plan
from ablate.runs.record import RunRecord, RunStatus

LOSS, BITS = "nats_per_token", "bits_per_byte"


@dataclass(frozen=True, kw_only=True, slots=True)
class CellEffect:
    """One component in one cell: on minus off."""

    component: str
    cell: DesignCell
    flops: float  # training FLOPs of a run of the cell's reference
    number: Number
    verdict: str
    n: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CellEffects:
    """The effects of all cells in one unit; `reason` says why there are none, where factors cross a design."""

    effects: tuple[CellEffect, ...] = ()
    unit: str = ""
    reason: str = ""


def by_cell(
    plan: Plan,
    comparisons: Sequence[Any],
    statuses: Mapping[str, RunStatus],
    records: Mapping[str, RunRecord],
    unpaired: Collection[str],
) -> CellEffects:
    """The effects of every cell.

    comparisons: those of the study (`compare.Comparison`); designs without any are attributed cell by cell. Cells whose
    texts are in other tokens are compared in bits per byte, since nats per token are not the same thing in them.
    """
    if not crossed_factors(plan):
        return CellEffects()
    metric, unit = (LOSS, "nats per token") if same_text(plan) else (BITS, "bits per byte")
    found: list[CellEffect] = []
    why = ""
    for cell in design_cells(plan):
        if comparisons:
            found += [_compared(c, cell, plan, metric, records) for c in comparisons if c.at == cell.label]
        else:
            effects, why = _attributed(cell, plan, metric, statuses, records, unpaired)
            found += effects
    return CellEffects(effects=tuple(found), unit=unit, reason="" if found else why)


def _compared(c: Any, cell: DesignCell, plan: Plan, metric: str, records: Mapping[str, RunRecord]) -> CellEffect:
    """From the comparison itself, or in the other unit from the same runs."""
    effect = c.loss
    if metric != LOSS:
        planned = {v.name: v for v in cell.variants}
        sides = [
            {
                seed: records[run_id].metrics.get(metric) if run_id in records else None
                for seed, run_id in zip(planned[name].seeds, planned[name].run_ids, strict=True)
            }
            for name in (c.with_variant, c.without_variant)
        ]
        effect = compare_pairs(
            *sides, name=c.name, unit="bits per byte", confidence=plan.interval_confidence, pairing_ok=c.pairing_ok
        )
    name = " + ".join(change.name for change in c.changes if not change.forced) or c.variant
    return CellEffect(
        component=name, cell=cell, flops=float(cell.variants[0].flops), verdict=c.loss.verdict, n=effect.n,
        number=Number(estimate=effect.estimate, low=effect.low, high=effect.high, reason=effect.reason),
    )  # fmt: skip


def _attributed(
    cell: DesignCell, plan: Plan, metric: str, statuses: Mapping[str, RunStatus], records: Mapping[str, RunRecord],
    unpaired: Collection[str],
) -> tuple[list[CellEffect], str]:  # fmt: skip
    """The design of one cell, attributed by itself."""
    inside = tuple(f for f in plan.factors if f not in crossed_factors(plan))
    seeds = tuple(sorted({seed for v in cell.variants for seed in v.seeds}))
    part = replace(plan, variants=cell.variants, factors=inside, seeds=seeds)
    ids = {run_id for v in cell.variants for run_id in v.run_ids}
    own = {run_id: record for run_id, record in records.items() if run_id in ids}
    attribution, why = attribute_design(part, statuses, own, metric, unpaired, {})
    if attribution is None:
        return [], why
    return [
        CellEffect(
            component=name, cell=cell, flops=float(cell.variants[0].flops), verdict=effect.verdict, n=effect.n,
            number=effect.indices[effect.verdict_from or "owen"],
        )
        for name, effect in attribution.effects.items()
    ], ""  # fmt: skip
