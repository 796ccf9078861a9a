"""The effect of each component over a ladder of sizes: one row a size, and the trend with where claims end."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ablate.attribution.study.compare import StudyResult
from ablate.attribution.study.gains import ComponentGain
from ablate.attribution.study.ladder import AtSize, Ladder, ladders, size_and_rest
from ablate.quantities import NONE, number, scaled, signed, signed_between
from ablate.report.cleaning import clean
from ablate.report.names import confidence
from ablate.report.tables.table import Columns, Table, make, text
from ablate.runs.factors import PRESET

COMPUTE = "ln of the compute for the same loss, without over with"


def study_ladders(result: StudyResult, gains: Sequence[ComponentGain]) -> tuple[Ladder, ...]:
    """A ladder per component: its effect on the loss and, where the runs give it, its gain in training FLOPs."""
    if not any(f.name == PRESET for f in result.plan.factors):
        return ()
    confidence_ = result.plan.interval_confidence
    losses = [
        AtSize(component=e.component, at=rest, size=size, flops=e.flops, estimate=e.number.estimate, low=e.number.low,
               high=e.number.high)
        for e in result.cells.effects
        for size, rest in (size_and_rest(e.cell.levels),)
    ]  # fmt: skip
    planned = {v.name: v.planned for v in result.variants}
    compute = []
    for gain in gains:
        c = gain.comparison
        levels = {f.name: planned[c.with_variant].levels[f.name] for f in result.plan.factors}
        size, rest = size_and_rest(levels)
        known = gain.flops.estimate is not None
        compute.append(
            AtSize(component=c.name.removesuffix(f" at {c.at}"), at=rest, size=size,
                   flops=float(planned[c.with_variant].flops), estimate=gain.flops.estimate,
                   low=gain.flops.low if known else None, high=gain.flops.high if known else None)
        )  # fmt: skip
    return (*ladders(losses, result.cells.unit, confidence_), *ladders(compute, COMPUTE, confidence_))


def ladder_table(found: Sequence[Ladder], result: StudyResult) -> Table:
    """Every effect at every size, in its unit."""
    columns: Columns = [text("Component"), text("Size"), "FLOP a run", "Effect", f"{confidence(result)} interval",
                        text("Unit")]  # fmt: skip
    rows = []
    for each in found:
        for size in each.sizes:
            in_compute = each.unit == COMPUTE
            unit = "× of compute saved" if in_compute else each.unit
            rows.append([each.component, size.size, scaled(size.flops, "FLOP"), _value(size.estimate, in_compute),
                         _ends(size.low, size.high, in_compute), unit])  # fmt: skip
    return make("The effects over the sizes", columns, rows)


def _value(value: float | None, in_compute: bool) -> str:
    if value is None:
        return NONE
    return f"{number(math.exp(value), 3)}×" if in_compute else signed(value)


def _ends(low: float | None, high: float | None, in_compute: bool) -> str:
    if low is None or high is None:
        return NONE
    return f"{number(math.exp(low), 3)} to {number(math.exp(high), 3)}" if in_compute else signed_between(low, high)


def trend_table(found: Sequence[Ladder], result: StudyResult) -> Table:
    """Change per decade of training compute, and what the line says at the end of what may be claimed."""
    columns: Columns = [text("Component"), text("Unit"), "Change per decade of compute",
                        f"{confidence(result)} interval", text("Half a decade beyond the largest size"),
                        text("Why there is none")]  # fmt: skip
    rows = []
    for each in found:
        trend, further = each.trend, each.prediction
        if trend is None:
            rows.append([each.component, each.unit, NONE, NONE, NONE, each.reason])
            continue
        low, high = trend.slope_interval
        said = NONE
        if further is not None:
            ends = signed_between(further.low, further.high)
            said = f"{signed(further.estimate)} ({ends}) at {scaled(further.flops, 'FLOP')}"
        rows.append([each.component, each.unit, signed(trend.slope), signed_between(low, high), said, ""])
    note = (
        "A line in log10 of the training FLOPs with a spread from size to size, estimated from the ladder itself, so "
        "few sizes give wide intervals. Claims end half a decade beyond the largest size: an effect that starts at a "
        "larger one cannot be seen from here."
    )
    return make("Trend with size", columns, rows, note if rows else "")


def ladder_sentence(found: Sequence[Ladder], result: StudyResult) -> str:
    """What the head of the report says of the trends; "" where there is no ladder."""
    if not found:
        return ""
    shown = [each for each in found if each.unit == COMPUTE] or list(found)
    parts = []
    for each in shown:
        if each.trend is None:
            parts.append(f"{clean(each.component)}: none, because {clean(each.reason)}")
            continue
        low, high = each.trend.slope_interval
        resolved = "resolved" if low > 0 or high < 0 else "not resolved"
        parts.append(
            f"{clean(each.component)} {signed(each.trend.slope)} per decade of compute ({signed_between(low, high)}), "
            f"{resolved}"
        )
    return f"Trend with size, in {shown[0].unit} ({confidence(result)} intervals): {'; '.join(parts)}."
