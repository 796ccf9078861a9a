"""Effect against compute over a ladder of sizes, with a prediction interval and a stated end of what can be claimed.

effect(C) = level + slope * log10(C / C0) + size-to-size spread tau, C0 the geometric mean of the ladder. No ladder
detects what has not started at its largest size, so claims end half a decade beyond it unless the effect was measured
at four sizes or more; DataDecide (arXiv:2504.11393) finds that no scaling-law method of eight beats the ranking at one
size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ablate.attribution.verdicts import t_quantile

FloatArray = NDArray[np.float64]

CLAIM_DECADES = 0.5  # beyond the largest measured size
FULL_LADDER_SIZES = 4
FULL_LADDER_DECADES = 1.5


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeEffect:
    """One component's effect at one size of the ladder."""

    flops: float  # training FLOPs of the runs
    estimate: float
    standard_error: float

    def __post_init__(self) -> None:
        if not 0 < self.flops < math.inf:
            raise ValueError(f"training FLOPs of a size must be positive and finite, got {self.flops}")
        if not (math.isfinite(self.estimate) and 0 < self.standard_error < math.inf):
            raise ValueError(
                f"the effect at {self.flops:.3g} FLOPs needs a finite estimate and a positive standard error, got "
                f"{self.estimate} and {self.standard_error}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleTrend:
    """Effect as a straight line in log10(training FLOPs); use `predict` for values with intervals."""

    centre: float  # log10 of C0
    level: float  # effect at C0
    slope: float  # change of the effect per decade of compute
    covariance: FloatArray  # (2, 2) of level and slope, tau included
    tau: float  # sd of the size-to-size spread around the line
    log_flops: tuple[float, ...]  # log10 of the measured sizes, increasing
    df: float  # sizes - 2; infinite where tau was given
    confidence: float

    @property
    def slope_interval(self) -> tuple[float, float]:
        """Confidence interval of the slope, effect per decade."""
        half = t_quantile(0.5 + self.confidence / 2, self.df) * math.sqrt(self.covariance[1, 1])
        return self.slope - half, self.slope + half


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalePrediction:
    """The effect expected at one amount of compute, with the interval for a new size there."""

    flops: float
    estimate: float
    low: float
    high: float
    decades_beyond: float  # beyond the largest measured size; negative inside the ladder
    note: str  # empty, or the sentence that must be printed with the interval


def fit_trend(sizes: Sequence[SizeEffect], *, tau: float | None = None, confidence: float = 0.95) -> ScaleTrend:
    """Random-effects line through the sizes.

    tau: the sd of the effect from size to size. None estimates it from the ladder (DerSimonian-Laird) and uses the
    t-distribution on sizes - 2, because a spread seen at four sizes is hardly known: the normal quantile would cover
    0.81 to 0.88 instead of 0.95. A number is taken as known, with the normal quantile; tau=0 gives narrow intervals
    that hold only if the effect follows the line exactly.
    Raises ValueError below 3 different sizes: two points fix a line and say nothing of its error.
    """
    ordered = sorted(sizes, key=lambda size: size.flops)
    x = np.log10(np.array([size.flops for size in ordered]))
    if len(np.unique(x)) < max(3, len(x)):
        raise ValueError(
            f"a trend needs at least 3 different sizes, one effect each, got {len(x)} effects at {len(np.unique(x))} "
            "sizes; measure more sizes or report the effect at the sizes there are"
        )
    y = np.array([size.estimate for size in ordered])
    variance = np.array([size.standard_error**2 for size in ordered])
    centre = float(x.mean())
    design = np.column_stack([np.ones_like(x), x - centre])
    if tau is not None and not 0 <= tau < math.inf:
        raise ValueError(f"tau is the sd of the effect between sizes, at least 0 and finite, got {tau}")
    tau2 = _spread(design, y, variance) if tau is None else tau**2
    beta, covariance = _weighted_line(design, y, variance + tau2)
    return ScaleTrend(
        centre=centre,
        level=float(beta[0]),
        slope=float(beta[1]),
        covariance=covariance,
        tau=math.sqrt(tau2),
        log_flops=tuple(float(v) for v in x),
        df=float(len(x) - 2) if tau is None else math.inf,
        confidence=confidence,
    )


def claim_limit(trend: ScaleTrend) -> float:
    """Training FLOPs up to which this ladder allows a claim; infinite for a full ladder, whose band only widens."""
    span = trend.log_flops[-1] - trend.log_flops[0]
    # A ladder of exactly 1.5 decades built from rounded budgets must not fail on the last digit.
    if len(trend.log_flops) >= FULL_LADDER_SIZES and span >= FULL_LADDER_DECADES - 1e-6:
        return math.inf
    return float(10.0 ** (trend.log_flops[-1] + CLAIM_DECADES))


def predict(trend: ScaleTrend, flops: float) -> ScalePrediction:
    """Prediction interval of the effect at `flops`.

    Raises ValueError beyond half a decade above the largest size unless the ladder has 4 sizes over 1.5 decades; with
    such a ladder the band goes on, and from half a decade on it comes with a sentence that must be printed with it.
    """
    if not 0 < flops < math.inf:
        raise ValueError(f"training FLOPs must be positive and finite, got {flops}")
    x = math.log10(flops)
    beyond = x - trend.log_flops[-1]
    outside = beyond > CLAIM_DECADES + 1e-9
    if outside and math.isfinite(claim_limit(trend)):
        raise ValueError(
            f"{flops:.3g} FLOPs is {beyond:.1f} decades beyond the largest measured size, and claims end at "
            f"{CLAIM_DECADES} decades ({claim_limit(trend):.3g} FLOPs) for {len(trend.log_flops)} sizes; measure at "
            f"least {FULL_LADDER_SIZES} sizes over {FULL_LADDER_DECADES} decades to go further"
        )
    at = np.array([1.0, x - trend.centre])
    estimate = float(at @ np.array([trend.level, trend.slope]))
    error = math.sqrt(float(at @ trend.covariance @ at) + trend.tau**2)
    half = t_quantile(0.5 + trend.confidence / 2, trend.df) * error
    note = ""
    if outside:
        note = (
            f"{beyond:.1f} decades beyond the largest measured size: holds only if the trend goes on; an effect that "
            "starts at a larger size cannot be seen from here"
        )
    return ScalePrediction(
        flops=flops, estimate=estimate, low=estimate - half, high=estimate + half, decades_beyond=beyond, note=note
    )


def _weighted_line(design: FloatArray, y: FloatArray, variance: FloatArray) -> tuple[FloatArray, FloatArray]:
    weighted = design / variance[:, None]
    covariance = np.linalg.inv(design.T @ weighted)
    return np.asarray(covariance @ (weighted.T @ y)), np.asarray(covariance, dtype=np.float64)


def _spread(design: FloatArray, y: FloatArray, variance: FloatArray) -> float:
    """Method-of-moments tau^2 around the line (DerSimonian and Laird 1986); 0 where noise explains it all."""
    beta, covariance = _weighted_line(design, y, variance)
    weights = 1.0 / variance
    excess = float((weights * (y - design @ beta) ** 2).sum()) - (len(y) - design.shape[1])
    scale = float(weights.sum() - np.trace(covariance @ (design.T * weights**2) @ design))
    return max(0.0, excess / scale)
