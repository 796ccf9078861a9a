"""What each change was worth in this program's own runs: tokens and FLOPs for the same loss, and nats, by size.

A study's cost is split in channels where its design allows it, else read comparison by comparison; where the runs do
not give a cost, the effect on the loss stands alone. Logarithms are of the cost without over the cost with: a positive
one is a saving.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ablate.attribution.gain.channels import ChannelTable
from ablate.attribution.gain.compute_gain import Gain
from ablate.attribution.lattice import Floats
from ablate.attribution.study.compare import Comparison, StudyResult
from ablate.attribution.study.gains import ComponentGain, SplitCost, component_gains, split_cost
from ablate.attribution.verdicts import GAIN, HARM, NOT_RESOLVED, holm_verdicts
from ablate.components.component import ON
from ablate.components.registry import NAMES, component
from ablate.evidence.changes.studies import StudyFacts
from ablate.runs.factors import PRESET

COST_MARGIN = math.log(1.02)  # costs within 2 % of each other are of no interest
PERHAPS_GAIN, PERHAPS_HARM = f"{GAIN}, perhaps negligible", f"{HARM}, perhaps negligible"
SAME_SIZE = 1.05  # times the tokens of a study's first variant: budgets are rounded to whole steps
OWEN, LAST, FIRST = "owen", "last", "first"


@dataclass(frozen=True, kw_only=True, slots=True)
class LogCost:
    """A saving as a logarithm. Without an estimate one end is finite, a bound, or neither is."""

    estimate: float | None
    low: float
    high: float
    standard_error: float | None
    df: float | None
    verdict: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LossEffect:
    """On minus off in nats per token, at what the study matched."""

    estimate: float | None
    low: float | None
    high: float | None
    verdict: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One change in one study at one size. `index`: owen of a design, last or first of a comparison."""

    component: str
    against: str  # the level that off was
    index: str
    study: StudyFacts
    preset: str  # the study's, or in a ladder that of this effect
    parameters: int
    n_tokens: int
    flops: float  # of a run
    tokens: LogCost | None
    flops_cost: LogCost | None
    log_flops_per_token: float | None  # exact, at this size
    loss: LossEffect
    reason: str  # why there is no cost, or ""

    @property
    def is_known(self) -> bool:
        """Whether the runs that there are determine it, in tokens or in nats."""
        return self.loss.estimate is not None or (self.tokens is not None and self.tokens.estimate is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Together:
    """The whole recipe of a design in one study: logarithms of the savings, and nats."""

    study: StudyFacts
    log_tokens: float
    log_flops: float
    loss: LossEffect
    target_loss: float


def of_study(facts: StudyFacts, result: StudyResult) -> tuple[tuple[Measured, ...], Together | None]:
    """Every effect of a component that a study has, and the whole of a design."""
    if result.comparisons:
        return tuple(_of_comparisons(facts, result)), None
    if result.attribution is None:
        return (), None
    cost, why = split_cost(result)
    return tuple(_of_design(facts, result, cost, why)), _together(facts, result, cost)


def _together(facts: StudyFacts, result: StudyResult, cost: SplitCost | None) -> Together | None:
    if cost is None or result.attribution is None:
        return None
    total = result.attribution.total
    loss = LossEffect(estimate=total.estimate, low=total.low, high=total.high, verdict="")
    tokens, flops = float(cost.table.by_channel[0]), float(cost.table.first(2).total)
    return Together(study=facts, log_tokens=tokens, log_flops=flops, loss=loss, target_loss=cost.target.loss)


def _of_design(facts: StudyFacts, result: StudyResult, cost: SplitCost | None, why: str) -> Iterator[Measured]:
    assert result.attribution is not None
    costs = {} if cost is None else _costs(cost.table, facts.confidence)
    off = {n: v.planned.levels[n] for v in result.variants for n in v.planned.levels if v.planned.levels[n] != ON}
    for name, effect in result.attribution.effects.items():
        if name not in NAMES:
            continue
        index = effect.verdict_from or OWEN
        shown = effect.indices[index]
        tokens, flops, per_token = costs.get(name, (None, None, None))
        yield Measured(
            component=name, against=off.get(name, ""), index=OWEN if costs else index, study=facts, preset=facts.preset,
            parameters=facts.parameters, n_tokens=facts.n_tokens, flops=facts.flops, tokens=tokens, flops_cost=flops,
            log_flops_per_token=per_token, reason="" if costs else why,
            loss=LossEffect(estimate=shown.estimate, low=shown.low, high=shown.high, verdict=effect.verdict),
        )  # fmt: skip


def _costs(table: ChannelTable, confidence: float) -> dict[str, tuple[LogCost, LogCost, float]]:
    """Component -> its cost in tokens, in FLOPs, and ln of its FLOPs per token."""
    flops = table.first(2)
    columns = (
        _judged(table.components, table.gains[:, 0], table.intervals(confidence)[:, 0], table, confidence),
        _judged(table.components, flops.by_component, flops.component_intervals(confidence), table, confidence),
    )
    return {
        name: (columns[0][name], columns[1][name], float(table.gains[k, 1])) for k, name in enumerate(table.components)
    }


def _judged(
    names: Sequence[str], values: Floats, ends: Floats, table: ChannelTable, confidence: float
) -> dict[str, LogCost]:  # fmt: skip
    """Savings with verdicts that hold together (Holm). FLOPs per token have no error, so tokens' is that of both."""
    errors, dfs = table.errors[:, 0], table.dfs[:, 0]
    tests = {
        name: (float(v), float(e), float(df)) for name, v, e, df in zip(names, values, errors, dfs, strict=True) if e
    }
    verdicts = _verdicts(tests, confidence)
    return {
        name: LogCost(
            estimate=float(value), low=float(low), high=float(high), standard_error=float(error), df=float(df),
            verdict=verdicts.get(name, NOT_RESOLVED),
        )
        for name, value, (low, high), error, df in zip(names, values, ends, errors, dfs, strict=True)
    }  # fmt: skip


def _verdicts(tests: Mapping[str, tuple[float, float, float]], confidence: float) -> dict[str, str]:
    """Beyond the margin, inside it, or of a sign that is certain and a size that may be negligible; all after Holm."""
    if not tests:
        return {}
    found = holm_verdicts(tests, margin=COST_MARGIN, confidence=confidence, lower_is_better=False)
    signs = holm_verdicts(tests, margin=0.0, confidence=confidence, lower_is_better=False)
    perhaps = {GAIN: PERHAPS_GAIN, HARM: PERHAPS_HARM}
    return {n: perhaps.get(signs[n], v) if v == NOT_RESOLVED else v for n, v in found.items()}


def _of_comparisons(facts: StudyFacts, result: StudyResult) -> Iterator[Measured]:
    gains, why = component_gains(result)
    by_variant = {gain.comparison.variant: gain for gain in gains}
    planned = {v.name: v.planned for v in result.variants}
    tokens = _of_gains({g.comparison.variant: g.tokens for g in gains}, facts.confidence)
    flops = _of_gains({g.comparison.variant: g.flops for g in gains}, facts.confidence)
    for c in result.comparisons:
        found = _switch(c)
        if found is None:
            continue
        on, gain = planned[c.with_variant], by_variant.get(c.variant)
        yield Measured(
            component=found[0], against=found[1], index=LAST if c.variant == c.without_variant else FIRST, study=facts,
            preset=c.at.removeprefix(f"{PRESET}=") or facts.preset,
            parameters=int(on.cost["total_parameters"]), n_tokens=on.n_tokens, flops=float(on.flops),
            tokens=tokens.get(c.variant), flops_cost=flops.get(c.variant),
            log_flops_per_token=None if gain is None else gain.log_flops_per_token,
            loss=LossEffect(estimate=c.loss.estimate, low=c.loss.low, high=c.loss.high, verdict=c.loss.verdict),
            reason=_why_none(gain, why),
        )  # fmt: skip


def _why_none(gain: ComponentGain | None, why: str) -> str:
    return "" if gain is not None else why or "its loss has no interval"


def _switch(c: Comparison) -> tuple[str, str] | None:
    """(component, what off was) of a comparison of one component on against off, at most over sizes; else None."""
    chosen = [change for change in c.changes if not change.forced]
    if len(chosen) != 1 or chosen[0].component not in NAMES or chosen[0].with_level != ON:
        return None
    if c.at and (not c.at.startswith(f"{PRESET}=") or "," in c.at):
        return None
    return chosen[0].component, chosen[0].without_level


def _of_gains(gains: Mapping[str, Gain], confidence: float) -> dict[str, LogCost]:
    tests = {
        name: (g.estimate, g.standard_error, g.df)
        for name, g in gains.items()
        if g.estimate is not None and g.standard_error is not None
    }
    verdicts = _verdicts(tests, confidence)
    return {
        name: LogCost(
            estimate=g.estimate, low=g.low, high=g.high, standard_error=g.standard_error, df=g.df,
            verdict=verdicts.get(name) or _of_bound(g),
        )
        for name, g in gains.items()
    }  # fmt: skip


def _of_bound(g: Gain) -> str:
    """Of a side that never reaches the loss: decided where the bound alone lies beyond the margin."""
    if g.estimate is not None:
        return NOT_RESOLVED
    return GAIN if g.low > COST_MARGIN else HARM if g.high < -COST_MARGIN else NOT_RESOLVED


def is_default(found: Measured) -> bool:
    """Whether off and on were what this program takes them to mean."""
    is_now = found.component not in found.study.earlier
    return is_now and found.against == component(found.component).default_alternative


def same_size(first: Measured, second: Measured) -> bool:
    """Whether two effects are of one size: a preset trained on as much text.

    Runs of one preset differ in FLOPs as far as their components cost some; that is no other size, and no trend.
    """
    ratio = first.study.n_tokens / second.study.n_tokens
    return first.preset == second.preset and 1 / SAME_SIZE <= ratio <= SAME_SIZE


def by_size(found: Sequence[Measured]) -> tuple[Measured, ...]:
    """One a size for a component, from small to large: of a whole design before a comparison, of most runs before few.

    Effects against other alternatives than the default, or of a text that is no longer read, are another question;
    of a study that is not finished, some are not known.
    """
    groups: list[list[Measured]] = []
    for each in (each for each in found if each.is_known and is_default(each)):
        group = next((group for group in groups if same_size(group[0], each)), None)
        if group is None:
            groups.append([each])
        else:
            group.append(each)
    return tuple(sorted((max(group, key=_weight) for group in groups), key=lambda each: each.flops))


def _weight(found: Measured) -> tuple[bool, bool, int]:
    return found.tokens is not None, found.index == OWEN, found.study.n_finished
