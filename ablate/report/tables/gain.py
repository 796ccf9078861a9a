"""What components are worth in compute: the headline sentence, the table of channels, and the three kinds of equality.

A factor above 1 is a saving: 1.25× means that the loss which costs 1 with the component costs 1.25 without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ablate.attribution.gain.compute_gain import Gain
from ablate.attribution.study.compare import StudyResult
from ablate.attribution.study.gains import MATCHES, ComponentGain, SplitCost, component_gains, split_cost
from ablate.quantities import NONE, number, signed, signed_between
from ablate.report.cleaning import clean
from ablate.report.names import MATCHED, confidence, label, unit
from ablate.report.tables.table import Columns, Table, make, text

DECIMALS = 2  # of a factor


def headline(gains: Sequence[ComponentGain], result: StudyResult) -> str:
    """The study's answer in compute, one clause a component; "" where no gain is known."""
    if not gains:
        return ""
    said = "; ".join(f"{clean(gain.comparison.name)}: {_clause(gain)}" for gain in gains)
    return (
        f"In compute, for the same loss of {number(gains[0].target.loss, 3)} nats per token (above 1 is a saving, "
        f"{confidence(result)} intervals): {said}."
    )


def _clause(gain: ComponentGain) -> str:
    parts = [f"tokens {factor(gain.tokens.estimate)}", f"FLOPs per token {factor(gain.log_flops_per_token)}"]
    if gain.tokens.estimate is None:
        return f"{_bound(gain.flops)} in training FLOPs (FLOPs per token {factor(gain.log_flops_per_token)}, exact)"
    evidence = gain.evidence["FLOP/s"]
    known = gain.log_flops_per_s is not None and evidence
    speed = f"; FLOP/s {factor(gain.log_flops_per_s)}, {evidence} and not multiplied in" if known else ""
    return f"{as_factor(gain.flops)} in training FLOPs, of {' and '.join(parts)}{speed}"


def factor(log: float | None) -> str:
    """A log gain as a factor."""
    return NONE if log is None else f"{number(math.exp(log), DECIMALS)}×"


def as_factor(gain: Gain | None) -> str:
    if gain is None:
        return NONE
    if gain.estimate is None:
        return _bound(gain)
    ends = f"{number(math.exp(gain.low), DECIMALS)} to {number(math.exp(gain.high), DECIMALS)}"
    return f"{factor(gain.estimate)} ({ends})"


def _bound(gain: Gain) -> str:
    """What is known where one side never reaches the target inside its measured range."""
    if math.isfinite(gain.low):
        return f"at least {factor(gain.low)}"
    return f"at most {factor(gain.high)}" if math.isfinite(gain.high) else "not known:"


def channels(gains: Sequence[ComponentGain], result: StudyResult) -> Table:
    """Components by channels; each row's logarithms add up."""
    columns: Columns = [text(unit(result)), f"Tokens ({confidence(result)} interval)", "FLOPs per token, exact",
                        "Training FLOPs: the two together", "FLOP/s", text("Evidence of FLOP/s"),
                        "Time: all three together"]  # fmt: skip
    rows = [
        [label(gain.comparison), as_factor(gain.tokens), factor(gain.log_flops_per_token), as_factor(gain.flops),
         factor(gain.log_flops_per_s), gain.evidence["FLOP/s"] or NONE, as_factor(gain.seconds)]
        for gain in gains
    ]  # fmt: skip
    return make(f"What each {unit(result).lower()} is worth in compute, for the same loss", columns, rows, _how(gains))


def _how(gains: Sequence[ComponentGain]) -> str:
    if not gains:
        return ""
    targets = dict.fromkeys(gain.target for gain in gains)
    losses = "; ".join(
        f"to the loss of {number(target.loss, 4)} nats per token, which {clean(target.worst)}, the last to reach it, "
        "has at the end of its budget"
        for target in targets
    )
    said = (
        f"Cost without the component over cost with it, {losses}; above 1 is a saving. Read off a quadratic in "
        "ln(tokens) through the finished models of each run. "
    )
    if any("emulated" in gain.comparison.speed_evidence for gain in gains):
        said += "Emulated FLOP/s, and time with them in it, say nothing of hardware that has the arithmetic. "
    return said + "A bound stands where a variant does not reach the loss inside its measured range."


def _split(cost: SplitCost, result: StudyResult) -> Table:
    """Components by channels of a design; rows and columns add up in logarithms."""
    table, level = cost.table, result.plan.interval_confidence
    flops, timed = table.first(2), table.gains.shape[1] == 3
    columns: Columns = [text("Component"), f"Tokens ({confidence(result)} interval)", "FLOPs per token, exact",
                        "Training FLOPs: the two together"]  # fmt: skip
    columns += [f"FLOP/s, {cost.evidence}", "Time: all three together"] if timed else []
    cells, in_flops, in_time = (
        t(level) for t in (table.intervals, flops.component_intervals, table.component_intervals)
    )
    rows = []
    for k, name in enumerate(table.components):
        row = [name, ends(table.gains[k, 0], cells[k, 0]), factor(table.gains[k, 1]),
               ends(flops.by_component[k], in_flops[k])]  # fmt: skip
        rows.append(
            row + ([ends(table.gains[k, 2], cells[k, 2]), ends(table.by_component[k], in_time[k])] if timed else [])
        )
    totals = [*table.by_channel[:2], flops.total, *([table.by_channel[2], table.total] if timed else [])]
    rows.append(["all together", *(factor(float(log)) for log in totals)])
    note = (
        f"Owen values of the logarithm of the cost to reach {number(cost.target.loss, 4)} nats per token, the loss of "
        f"{clean(cost.target.worst)} at the end of its budget; above 1 is a saving. Factors multiply down and across."
    )
    note += "" if timed else " FLOP/s are left out: the variants' speeds are of different kinds of evidence."
    return make("What each component is worth in compute, for the same loss", columns, rows, note)


def _split_headline(cost: SplitCost, result: StudyResult) -> str:
    flops = cost.table.first(2)
    found = flops.component_intervals(result.plan.interval_confidence)
    said = ", ".join(f"{clean(n)} {ends(flops.by_component[k], found[k])}" for k, n in enumerate(flops.components))
    return (
        f"In training FLOPs for the same loss of {number(cost.target.loss, 3)} nats per token (above 1 is a saving, "
        f"{confidence(result)} intervals): {said}; all together {factor(flops.total)}."
    )


def ends(log: float, interval: Sequence[float]) -> str:
    """A log gain as a factor with its interval."""
    low, high = (number(math.exp(end), DECIMALS) for end in interval)
    return f"{factor(log)} ({low} to {high})"


@dataclass(frozen=True, kw_only=True, slots=True)
class InCompute:
    """What a report says of a study in compute; empty parts and `why` where the runs do not give it."""

    headline: str
    channels: Table
    matches: Table
    gains: tuple[ComponentGain, ...]
    cost: SplitCost | None
    why: str


def in_compute(result: StudyResult) -> InCompute:
    """By comparisons where the study has them, else by the split of its design."""
    gains, why = component_gains(result)
    cost = None
    if not result.comparisons:
        cost, why = split_cost(result)
    return InCompute(
        headline=_split_headline(cost, result) if cost else headline(gains, result),
        channels=_split(cost, result) if cost else channels(gains, result),
        matches=matches(gains, result),
        gains=gains,
        cost=cost,
        why=why,
    )


def matches(gains: Sequence[ComponentGain], result: StudyResult) -> Table:
    """The differences in nats at equal tokens, FLOPs and time, the kind that the study matched first."""
    order = sorted(MATCHES, key=lambda match: match != result.plan.match)
    columns: Columns = [text(unit(result)), *(f"At equal {MATCHED[match]}" for match in order)]
    rows = []
    for gain in gains:
        cells = []
        for match in order:
            effect = gain.matched[match]
            ends = "" if effect.low is None else f" ({signed_between(effect.low, effect.high)})"
            cells.append(f"{signed(effect.estimate)}{ends}")
        rows.append([label(gain.comparison), *cells])
    note = (
        f"With minus without, nats per token, with {confidence(result)} intervals. The kind that was matched is "
        "measured at the end of the runs; the others are read off the same runs' finished models, at the largest "
        "amount that both sides had."
    )
    return make("The same runs at equal tokens, FLOPs and time", columns, rows, note if rows else "")
