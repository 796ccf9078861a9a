"""What a study's components are worth in compute: the cost to reach a loss, split in tokens, FLOPs per token, FLOP/s.

A run leaves a finished model at each of its branches and at its end, so that one run is a curve of decayed losses. From
the same curves come the cost to reach one loss and the difference in nats at equal tokens, equal FLOPs or equal time.
Logarithms of factors are added; a factor above 1 is a saving.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ablate.attribution.estimation.pairs import compare_pairs
from ablate.attribution.gain.channels import ChannelTable, MeasuredRun, VariantSpeed, measured_table
from ablate.attribution.gain.compute_gain import (
    DecayedCurve,
    Gain,
    Target,
    losses_at,
    shifted,
    target_losses,
    token_gain,
)
from ablate.attribution.study.cells import sizes_apart
from ablate.attribution.study.compare import LOSS, Comparison, StudyResult, VariantResult
from ablate.attribution.study.designed import cell_of, design_lattice
from ablate.attribution.verdicts import Effect, interval

MATCHES = ("tokens", "flops", "seconds")
MIN_POINTS = 3  # of a curve: below, its bend is not known


@dataclass(frozen=True, kw_only=True, slots=True)
class ComponentGain:
    """One comparison in log cost at one target loss, and in nats at three kinds of equality.

    `tokens` is measured with its interval or a bound; `log_flops_per_token` is exact (closed form); `log_flops_per_s`
    is None where no speed was compared. `flops` is the gain in training FLOPs, tokens and FLOPs per token together,
    `seconds` the gain in time, all three together.
    """

    comparison: Comparison
    target: Target
    tokens: Gain
    log_flops_per_token: float
    log_flops_per_s: float | None
    flops: Gain
    seconds: Gain | None
    matched: Mapping[str, Effect]  # tokens | flops | seconds -> nats per token, with minus without

    @property
    def evidence(self) -> dict[str, str]:
        """Channel -> measured, exact, emulated, or "" where there is nothing."""
        speed = " and ".join(self.comparison.speed_evidence) if self.log_flops_per_s is not None else ""
        return {"tokens": "measured", "FLOPs per token": "exact", "FLOP/s": speed}


def component_gains(result: StudyResult) -> tuple[tuple[ComponentGain, ...], str]:
    """The gain of every comparison whose loss has an interval, all at one target loss; and what has none, with why.

    The target is the worst variant's mean loss at the end of its budget, so that every variant reaches it inside its
    measured range or gives a bound. Each size of a ladder has a target of its own.
    """
    if not result.comparisons:
        return (), "the design compares no pair of variants"
    whole = [c for c in result.comparisons if c.loss.low is not None]
    refused = ", ".join(c.name for c in result.comparisons if c.loss.low is None)
    why_refused = f"none for {refused}, whose loss has no interval" if refused else ""
    if not whole:
        return (), why_refused
    used = {name for c in whole for name in (c.with_variant, c.without_variant)}
    curves = {v.name: decayed_curves(v) for v in result.variants if v.name in used}
    lacking = [name for name, found in curves.items() if len(found) < 2]
    if lacking:
        return (), (
            f"{lacking[0]} has fewer than 2 finished runs with {MIN_POINTS} finished models each (trainer.branches), "
            "so the cost to reach a loss is not known"
        )
    by_name = {v.name: v for v in result.variants}
    found = []
    for names in sizes_apart(result.plan):
        inside = [c for c in whole if c.with_variant in names]
        own = {name: curves[name] for c in inside for name in (c.with_variant, c.without_variant)}
        if own:
            (target,) = target_losses(own, fractions=(1.0,))
            found += [_gain(c, by_name, curves, target, result.plan.match) for c in inside]
    return tuple(found), why_refused


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitCost:
    """The cost to reach one loss, split among the components of a design and the channels.

    `evidence`: of FLOP/s; "" where the variants' speeds are of different kinds, and the channel is left out.
    """

    target: Target
    table: ChannelTable
    evidence: str


def split_cost(result: StudyResult) -> tuple[SplitCost | None, str]:
    """The channels of a design that runs every feasible variant; or None, and why."""
    if result.attribution is None:
        return None, "the study is no design that splits a total"
    parts = design_lattice(result.plan.variants, result.plan.factors)
    by_cell = {cell_of(parts, v.planned): v for v in result.variants}
    lacking = [parts.label(cell) for cell in parts.cells if cell not in by_cell]
    if lacking:
        return None, f"the design has no run of {lacking[0]}"
    curves = {v.name: decayed_curves(v) for v in result.variants}
    without = [f"{v.name} has a run without {MIN_POINTS} finished models" for v in result.variants
               if len(curves[v.name]) < len(v.runs)]  # fmt: skip
    if without:
        return None, f"{without[0]} (trainer.branches)"
    (target,) = target_losses(curves, fractions=(1.0,))
    alone = {(broken.variant, broken.seed) for broken in result.pairing_breaks}
    runs = [
        MeasuredRun(cell=cell, cluster=None if (v.name, curve.seed) in alone else curve.seed, curve=curve)
        for cell, v in by_cell.items()
        for curve in curves[v.name]
    ]
    kinds = {v.evidence.get("speed", ()) for v in result.variants}
    speeds = {cell: _variant_speed(v, known=len(kinds) == 1) for cell, v in by_cell.items()}
    try:
        table = measured_table(parts, runs, speeds, target.loss, order=result.plan.design.order)
    except ValueError as error:
        return None, str(error)
    return SplitCost(target=target, table=table, evidence=" and ".join(kinds.pop()) if len(kinds) == 1 else ""), ""


def _variant_speed(v: VariantResult, *, known: bool) -> VariantSpeed:
    flops, speed = _flops_per_token(v), v.metrics.get("tokens_per_s")
    rates = tuple(math.log(tokens * flops) for tokens in speed.values.values()) if speed and known else ()
    return VariantSpeed(flops_per_token=flops, log_flops_per_s=rates)


def decayed_curves(variant: VariantResult) -> list[DecayedCurve]:
    """A curve for each finished run that has enough finished models: its branches and its end."""
    found = []
    for run in variant.finished:
        if run.record is None or LOSS not in run.record.metrics:
            continue
        trained = run.record.metrics.get("n_tokens", float(run.record.n_tokens))
        end = {LOSS: run.record.metrics[LOSS], "n_tokens": trained}
        points = [*run.record.branches, end]
        if len(points) >= MIN_POINTS:
            tokens, loss = (tuple(point[key] for point in points) for key in ("n_tokens", LOSS))
            found.append(DecayedCurve(seed=run.seed, tokens=tokens, loss=loss))
    return found


def _gain(
    c: Comparison,
    by_name: Mapping[str, VariantResult],
    curves: Mapping[str, Sequence[DecayedCurve]],
    target: Target,
    matched: str,
) -> ComponentGain:
    on, off = by_name[c.with_variant], by_name[c.without_variant]
    confidence = c.loss.confidence
    paired = c.pairing_ok and [x.seed for x in curves[on.name]] == [x.seed for x in curves[off.name]]
    tokens = token_gain(curves[off.name], curves[on.name], target.loss, confidence=confidence, paired=paired)
    per_token = math.log(_flops_per_token(off) / _flops_per_token(on))
    speed = c.speed if c.speed is not None and c.speed.estimate is not None else None
    return ComponentGain(
        comparison=c,
        target=target,
        tokens=tokens,
        log_flops_per_token=per_token,
        # Speed is compared in tokens per second: FLOP/s are those times the FLOPs of a token.
        log_flops_per_s=None if speed is None or speed.estimate is None else speed.estimate - per_token,
        flops=shifted(tokens, per_token),
        seconds=None if speed is None else _in_time(tokens, speed),
        # What was matched was measured; only the others are read off the curves.
        matched={
            match: c.loss if match == matched else _matched(match, c, on, off, curves, paired=paired)
            for match in MATCHES
        },
    )


def _flops_per_token(variant: VariantResult) -> float:
    return variant.planned.flops / variant.planned.n_tokens


def _in_time(tokens: Gain, speed: Effect) -> Gain | None:
    """Tokens saved and tokens per second together; losses and timings are measured apart, so variances add."""
    if tokens.estimate is None or tokens.standard_error is None or speed.standard_error is None or speed.df is None:
        return None
    assert speed.estimate is not None
    estimate = tokens.estimate + speed.estimate
    variances = tokens.standard_error**2, speed.standard_error**2
    error = math.sqrt(sum(variances))
    parts = variances[0] ** 2 / tokens.df + variances[1] ** 2 / speed.df
    df = sum(variances) ** 2 / parts if parts else math.inf
    low, high = interval(estimate, error, df, tokens.confidence)
    return Gain(
        estimate=estimate, low=low, high=high, standard_error=error, n=tokens.n, df=df, bound="exact",
        confidence=tokens.confidence,
    )  # fmt: skip


def _matched(
    match: str,
    c: Comparison,
    on: VariantResult,
    off: VariantResult,
    curves: Mapping[str, Sequence[DecayedCurve]],
    *,
    paired: bool,
) -> Effect:
    """The loss with minus the loss without, each read off its own decayed curve at the largest amount that both had."""
    price = {v.name: _price(match, v) for v in (on, off)}
    sides = []
    if all(price.values()):
        amount = min(price[v.name] * curves[v.name][0].tokens[-1] for v in (on, off))
        for v in (on, off):
            found = losses_at(curves[v.name], amount / price[v.name])
            sides.append(
                {x.seed: float(y) if np.isfinite(y) else None for x, y in zip(curves[v.name], found, strict=True)}
            )
    empty: list[dict[int, float | None]] = [{run.seed: None for run in v.runs} for v in (on, off)]
    return compare_pairs(
        *(sides or empty), name=f"at equal {match}", unit="nats per token", margin=c.loss.margin,
        confidence=c.loss.confidence, pairing_ok=paired,
    )  # fmt: skip


def _price(match: str, variant: VariantResult) -> float:
    """What a token costs: 1, training FLOPs, or seconds; 0 where the speed was not measured."""
    if match == "tokens":
        return 1.0
    if match == "flops":
        return _flops_per_token(variant)
    speed = variant.metrics.get("tokens_per_s")
    return 1 / speed.median if speed else 0.0
