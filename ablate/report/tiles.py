"""The three numbers under the answer: loss or compute, FLOPs per token, speed; an emulated speed is greyed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ablate.attribution.study.compare import SPEED, Comparison, StudyResult, VariantResult
from ablate.quantities import NONE, signed, signed_between, times
from ablate.report.ends import ends
from ablate.report.names import arrow, confidence, emulated
from ablate.report.tables.speed import ratio
from ablate.report.waterfall import Waterfall


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """A number with what it is and how it is known; `muted`: it says nothing of real hardware, or there is none."""

    title: str
    value: str
    note: str
    muted: bool = False


def tiles(result: StudyResult, steps: Waterfall | None) -> tuple[Tile, ...]:
    """Of a comparison with against without; of a design, the full recipe against the dense end; else none."""
    if len(result.comparisons) == 1:
        return tuple(_of_one(result.comparisons[0], result))
    return tuple(_of_ends(result, steps)) if steps is not None else ()


def _of_one(c: Comparison, result: StudyResult) -> Iterator[Tile]:
    by_name = {v.name: v for v in result.variants}
    on, off = by_name[c.with_variant], by_name[c.without_variant]
    known = f"{confidence(result)}: {signed_between(c.loss.low, c.loss.high, 3)}"
    how = "no interval" if c.loss.low is None else known
    yield Tile(title=f"Held-out loss, {arrow(c)}", value=f"{signed(c.loss.estimate, 3)} nats", note=how,
               muted=c.loss.estimate is None)  # fmt: skip
    yield _flops(on, off)
    value, interval = ratio(c.speed)
    kinds = " and ".join(c.speed_evidence) or "not known"
    yield Tile(title="Tokens per second", value=value, note=f"{kinds}{'' if interval == NONE else f', {interval}'}",
               muted="emulated" in c.speed_evidence or value == NONE)  # fmt: skip


def _of_ends(result: StudyResult, steps: Waterfall) -> Iterator[Tile]:
    found = ends(result)
    yield Tile(title=f"{steps.unit[0].upper()}{steps.unit[1:]}", value=steps.said(steps.total),
               note=f"{steps.ends[1]} against {steps.ends[0]}")  # fmt: skip
    if found is None:
        return
    full, dense = found
    yield _flops(full, dense)
    if SPEED in full.metrics and SPEED in dense.metrics:
        value = full.metrics[SPEED].median / dense.metrics[SPEED].median
        soft = emulated(full) or emulated(dense)
        yield Tile(title="Tokens per second", value=times(value), note="emulated" if soft else "measured", muted=soft)


def _flops(on: VariantResult, off: VariantResult) -> Tile:
    costs = [v.planned.cost.get("training_flops_per_token") for v in (on, off)]
    value = times(costs[0] / costs[1]) if costs[0] and costs[1] else NONE
    return Tile(title="Training FLOPs per token", value=value, note="exact, closed form", muted=value == NONE)
