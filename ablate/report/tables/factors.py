"""Tables of factors: responses of the loss and of effects along each, and effects cell by cell."""

from __future__ import annotations

from ablate.attribution.study.compare import StudyResult
from ablate.attribution.study.responses import Response, Trend
from ablate.quantities import NONE, listed, number, signed, signed_between
from ablate.report.cleaning import clean
from ablate.report.names import confidence
from ablate.report.tables.effects import verdict_column
from ablate.report.tables.table import Columns, Table, make, text


def responses(result: StudyResult) -> tuple[Table, ...]:
    """A table for each factor and what responds to it."""
    return tuple(_response(found, result) for found in result.responses)


def _response(found: Response, result: StudyResult) -> Table:
    reference = found.factor.levels[0]
    value = "Effect, on minus off" if found.of else "Loss"
    families = [level.difference.family for level in found.levels if level.difference]
    columns: Columns = [text("Level"), f"{value}, {found.unit}", f"{confidence(result)} interval", "Seeds",
                        f"Minus that of {clean(reference)}", f"{confidence(result)} interval of the difference",
                        verdict_column(max(families, default=1))]  # fmt: skip
    rows = []
    for level in found.levels:
        mean, d = level.mean, level.difference
        said = signed if found.of else number
        ends = NONE if mean.low is None else f"{said(mean.low)} to {said(mean.high)}"
        against = [signed(d.estimate), signed_between(d.low, d.high), d.verdict] if d else [NONE, NONE, "reference"]
        if d and found.of:
            against[2] = _of_an_effect(d.low, d.high)
        rows.append([level.label, said(mean.estimate), ends, str(level.n), *against])
    what = f"the effect of {found.of}" if found.of else "the loss"
    return make(f"{found.factor.name}: {what} at each level", columns, rows, _note(found))


def _of_an_effect(low: float | None, high: float | None) -> str:
    """An effect that grows is neither gain nor harm: whether it differs is what is asked."""
    if low is None or high is None:
        return "not resolved"
    return "differs" if low > 0 or high < 0 else "not resolved"


def _note(found: Response) -> str:
    parts = []
    if found.over:
        parts.append(f"Averaged over the levels of {listed(map(clean, found.over))}.")
    parts.append(f"{trend_sentence(found)} Differences are within seeds; a negative one is a lower {_noun(found)}.")
    return " ".join(parts)


def _noun(found: Response) -> str:
    return "effect, which is better" if found.of else "loss"


def trend_sentence(found: Response) -> str:
    """The straight line through the levels, and whether they bend from it."""
    trend = found.trend
    if trend is None:
        return f"No trend is tested: {clean(found.trend_reason)}."
    if trend.slope.low is None or trend.slope_p is None:
        return f"No trend is tested: {clean(trend.slope.reason or '')}."
    resolved = "is resolved" if trend.slope.low > 0 or (trend.slope.high or 0.0) < 0 else "is not resolved"
    return (
        f"Trend per {trend.per}: {signed(trend.slope.estimate)} "
        f"({signed_between(trend.slope.low, trend.slope.high)}, p = {_p(trend.slope_p)}), which "
        f"{resolved}{_bend(trend)}."
    )


def _bend(trend: Trend) -> str:
    if trend.bend is None or trend.bend_p is None:
        return ""
    return f"; bend (coefficient of the square) {signed(trend.bend.estimate)}, p = {_p(trend.bend_p)}"


def _p(value: float) -> str:
    return "below 0.001" if value < 0.001 else number(value, 3)
