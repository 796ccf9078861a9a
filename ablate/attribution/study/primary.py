"""The primary metric that a study stated: what each comparison is worth in it, with the verdict at its own margin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ablate.attribution.estimation.pairs import compare_pairs
from ablate.attribution.gain.compute_gain import Gain
from ablate.attribution.study.compare import Comparison, StudyResult, VariantResult
from ablate.attribution.study.gains import ComponentGain
from ablate.attribution.verdicts import NOT_RESOLVED, Effect, decide, holm_verdicts
from ablate.runs.plan import Plan
from ablate.runs.primary import PRIMARY, PrimaryMetric


@dataclass(frozen=True, kw_only=True, slots=True)
class PrimaryResult:
    """Effects by comparison, in the metric's unit or as ln of a ratio, with minus or over without."""

    metric: PrimaryMetric
    effects: tuple[tuple[Comparison, Effect], ...]
    reason: str  # why there are none, or ""


def primary(result: StudyResult, gains: Sequence[ComponentGain]) -> PrimaryResult:
    """What every comparison is worth in the study's primary metric; verdicts hold together (Holm)."""
    metric = PRIMARY[result.plan.primary_metric]
    if not result.comparisons:
        return PrimaryResult(
            metric=metric, effects=(), reason="the design compares no pair of variants; its attribution is below"
        )
    by_name = {v.name: v for v in result.variants}
    of_gain = {gain.comparison.variant: gain for gain in gains}
    found = []
    for c in result.comparisons:
        on, off = by_name[c.with_variant], by_name[c.without_variant]
        if metric.source == "record":
            effect = _recorded(c, on, off, metric, result.plan)
        elif metric.source == "gain":
            effect = _gained(c, of_gain.get(c.variant), metric, result.plan)
        else:
            effect = _counted(c, on, off, metric, result.plan)
        found.append((c, effect))
    return PrimaryResult(metric=metric, effects=_together(found, metric), reason="")


def _margin(metric: PrimaryMetric, plan: Plan) -> float:
    """In the unit of the estimate: of a ratio, its logarithm."""
    margin = plan.margin_nats if plan.primary_margin is None else plan.primary_margin
    return math.log1p(margin) if metric.scale == "ratio" else margin


def _recorded(c: Comparison, on: VariantResult, off: VariantResult, metric: PrimaryMetric, plan: Plan) -> Effect:
    if metric.key == "nats_per_token":
        return c.loss
    for v in (on, off):
        if metric.key not in v.metrics:
            return _none(c, metric, plan, f"{v.name} has no {metric.title}")
    if "emulated" in (*on.evidence.get("speed", ()), *off.evidence.get("speed", ())) and metric.scale == "ratio":
        return _none(c, metric, plan, "a side is emulated here, and its figure is not that of the method")
    sides = [
        {
            run.seed: None if (x := v.metrics[metric.key].values.get(run.seed)) is None
            else math.log(x) if metric.scale == "ratio" and x > 0 else x
            for run in v.runs
        }
        for v in (on, off)
    ]  # fmt: skip
    return compare_pairs(
        *sides, name=c.name, unit=metric.unit, margin=_margin(metric, plan), confidence=plan.interval_confidence,
        lower_is_better=metric.lower_is_better, pairing_ok=c.pairing_ok,
    )  # fmt: skip


def _gained(c: Comparison, gain: ComponentGain | None, metric: PrimaryMetric, plan: Plan) -> Effect:
    """A gain is ln of the cost without over with; the metric is the cost with over without."""
    found: Gain | None = None
    if gain is not None:
        found = gain.flops if metric.key == "flops" else gain.seconds
    if found is None or found.estimate is None:
        why = "the loss is not reached inside the measured range" if found else "its runs do not give it"
        return _none(c, metric, plan, why)
    if metric.key == "seconds" and "emulated" in c.speed_evidence:
        return _none(c, metric, plan, "a side is emulated here, and its time is not that of the method")
    margin, estimate = _margin(metric, plan), -found.estimate
    error = found.standard_error
    if error is None:
        return _none(c, metric, plan, "it has no interval")
    return Effect(
        name=c.name, unit="ln cost", estimate=estimate, low=-found.high, high=-found.low, n=found.n,
        standard_error=error, df=found.df, margin=margin, confidence=found.confidence,
        verdict=decide(estimate, error, found.df, margin=margin, confidence=found.confidence),
    )  # fmt: skip


def _counted(c: Comparison, on: VariantResult, off: VariantResult, metric: PrimaryMetric, plan: Plan) -> Effect:
    """From the closed form, which has no noise."""
    x, y = (v.planned.cost.get(metric.key, 0) for v in (on, off))
    if not x or not y:
        return _none(c, metric, plan, "its closed form is not in the plan")
    estimate, margin = math.log(x / y), _margin(metric, plan)
    verdict = decide(estimate, 0.0, 1.0, margin=margin, confidence=plan.interval_confidence)
    return Effect(name=c.name, unit="", estimate=estimate, low=estimate, high=estimate, n=0, verdict=verdict,
                  margin=margin, method="exact")  # fmt: skip


def _none(c: Comparison, metric: PrimaryMetric, plan: Plan, why: str) -> Effect:
    return Effect(name=c.name, unit=metric.unit, estimate=None, low=None, high=None, n=0, verdict=NOT_RESOLVED,
                  margin=_margin(metric, plan), reason=why)  # fmt: skip


def _together(
    found: Sequence[tuple[Comparison, Effect]], metric: PrimaryMetric
) -> tuple[tuple[Comparison, Effect], ...]:
    """The verdicts that survive Holm's correction over all effects that have an interval with noise in it."""
    tests = {
        c.variant: (e.estimate, e.standard_error, e.df)
        for c, e in found
        if e.estimate is not None and e.standard_error is not None and e.df is not None
    }
    if not tests:
        return tuple(found)
    first = next(e for c, e in found if c.variant in tests)
    verdicts = holm_verdicts(
        tests, margin=first.margin, confidence=first.confidence, lower_is_better=metric.lower_is_better
    )
    return tuple(
        (c, replace(e, verdict=verdicts[c.variant], family=len(tests)) if c.variant in verdicts else e)
        for c, e in found
    )
