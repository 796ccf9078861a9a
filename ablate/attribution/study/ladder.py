"""The effects of a study over a ladder of sizes: one at each size, and where they lead (`gain.scale`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ablate.attribution.gain.scale import (
    CLAIM_DECADES,
    ScalePrediction,
    ScaleTrend,
    SizeEffect,
    fit_trend,
    predict,
)
from ablate.attribution.verdicts import t_quantile
from ablate.runs.factors import PRESET


@dataclass(frozen=True, kw_only=True, slots=True)
class AtSize:
    """An effect at one size of the ladder; parts that are not known are None."""

    component: str
    at: str  # levels of further factors, or ""
    size: str
    flops: float  # training FLOPs of a run of the size's reference
    estimate: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Ladder:
    """One component's effect over the sizes, in one unit: its trend, and what is expected half a decade further."""

    component: str
    unit: str
    sizes: tuple[AtSize, ...]
    trend: ScaleTrend | None
    prediction: ScalePrediction | None  # at the end of what may be claimed
    reason: str  # why there is no trend, or ""


def ladders(effects: Sequence[AtSize], unit: str, confidence: float) -> tuple[Ladder, ...]:
    """A ladder for each component (and each level of further factors), the sizes from small to large."""
    groups: dict[tuple[str, str], list[AtSize]] = {}
    for effect in effects:
        groups.setdefault((effect.component, effect.at), []).append(effect)
    return tuple(
        _ladder(f"{component} at {at}" if at else component, sorted(found, key=lambda e: e.flops), unit, confidence)
        for (component, at), found in groups.items()
    )


def _ladder(name: str, sizes: Sequence[AtSize], unit: str, confidence: float) -> Ladder:
    known = [size for size in sizes if size.estimate is not None and size.low is not None]
    trend, prediction, reason = None, None, ""
    try:
        trend = fit_trend([_size_effect(size, confidence) for size in known], confidence=confidence)
        prediction = predict(trend, sizes[-1].flops * 10**CLAIM_DECADES)
    except ValueError as error:
        lost = len(sizes) - len(known)
        reason = f"{lost} of {len(sizes)} sizes have no interval" if lost else str(error)
    return Ladder(component=name, unit=unit, sizes=tuple(sizes), trend=trend, prediction=prediction, reason=reason)


def _size_effect(size: AtSize, confidence: float) -> SizeEffect:
    """With the standard error that a normal interval as wide as the effect's own would have.

    So the few degrees of freedom of a size are not forgotten by the trend, which takes standard errors as known.
    """
    assert size.estimate is not None
    assert size.low is not None
    assert size.high is not None
    half = (size.high - size.low) / 2
    error = half / t_quantile(0.5 + confidence / 2, float("inf"))
    return SizeEffect(flops=size.flops, estimate=size.estimate, standard_error=error)


def size_and_rest(levels: Mapping[str, str]) -> tuple[str, str]:
    """The size of a cell of factors, and its other levels in words."""
    rest = ", ".join(f"{name}={level}" for name, level in levels.items() if name != PRESET)
    return levels.get(PRESET, ""), rest
