"""Compute-equivalent gain: log tokens to a target loss, seed by seed, with bounds where the target is not reached.

The gain of a variant is ln(cost of the baseline) - ln(cost of the variant) at one target loss (Davidson et al.,
arXiv:2312.07413), so gains add where factors multiply. Each seed's own decayed losses are joined by a quadratic in
ln(tokens) and inverted; straight lines between the points are biased by the curve's bend, and points before the decay
are never compared, because rankings flip during the decay (Wen et al., arXiv:2509.02046).
The module `channels` splits a gain in its three channels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ablate.attribution.estimation.pairs import welch
from ablate.attribution.verdicts import check_confidence, interval, t_quantile

FloatArray = NDArray[np.float64]
Bound = Literal["exact", "at least", "at most", "unknown"]

TARGET_FRACTIONS = (1.0, 0.75, 0.5)
# A seed may cross the target this far (in ln tokens) beyond its measured range, because half of the worst variant's
# seeds end above their own mean; the seed mean itself must cross inside the range.
SEED_SLACK = math.log(1.5)
_EDGE = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class DecayedCurve:
    """Losses of one run at the ends of its cool-downs: one trunk, three or more decayed branches."""

    seed: int
    tokens: tuple[float, ...]  # trained tokens at the end of each cool-down, increasing
    loss: tuple[float, ...]  # held-out loss there, nats per token

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.loss) or len(self.tokens) < 3:
            raise ValueError(
                f"seed {self.seed}: a curve needs at least 3 decayed points with one loss each, got "
                f"{len(self.tokens)} token counts and {len(self.loss)} losses; add decay branches"
            )
        if not all(math.isfinite(x) for x in (*self.tokens, *self.loss)):
            raise ValueError(f"seed {self.seed}: every token count and loss must be a finite number")
        if self.tokens[0] <= 0 or any(a >= b for a, b in zip(self.tokens, self.tokens[1:], strict=False)):
            raise ValueError(f"seed {self.seed}: token counts must be positive and increasing, got {self.tokens}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A loss that gains are read at, and where it comes from."""

    loss: float  # nats per token
    fraction: float  # of the worst variant's budget at which it has this loss
    worst: str  # the variant that reaches it last


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """A difference between a variant and the baseline; positive is better. Log cost, or nats."""

    estimate: float | None  # None where the target was not reached inside the measured range
    low: float
    high: float
    n: int  # seeds of the variant
    df: float
    bound: Bound
    confidence: float
    standard_error: float | None = None  # None where there is no estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fit:
    """Quadratics of one variant, one row per seed: loss = c0 + c1 x + c2 x^2 with x = ln(tokens) - origin."""

    seeds: tuple[int, ...]
    origin: float
    coefficients: FloatArray  # (seeds, 3)
    low: float  # the range of ln(tokens) that every seed measured
    high: float

    def loss_at(self, log_tokens: float) -> FloatArray:
        x = log_tokens - self.origin
        return np.asarray(self.coefficients @ np.array([1.0, x, x * x]))


def quadratic_coefficients(log_tokens: FloatArray, loss: FloatArray) -> FloatArray:
    """Least-squares quadratics through `loss` (..., k) at shared `log_tokens` (k,), already centred: (..., 3)."""
    return np.asarray(loss @ _inverse_basis(tuple(log_tokens.tolist())).T)


@lru_cache(maxsize=256)
def _inverse_basis(log_tokens: tuple[float, ...]) -> FloatArray:
    """(3, k) pseudo-inverse of the quadratic basis; runs of a study share their branch points."""
    return np.asarray(np.linalg.pinv(np.vander(np.array(log_tokens), 3, increasing=True)))


def solve_descending(coefficients: FloatArray, loss: float | FloatArray) -> FloatArray:
    """Where quadratics (..., 3) fall through `loss`; nan where they never do. Centred ln(tokens), shape (...).

    Of the two roots the one on the falling branch, in the form that stays exact as the curvature goes to zero.
    """
    c0, c1, c2 = np.moveaxis(np.asarray(coefficients, dtype=np.float64), -1, 0)
    c0, c1, c2 = c0 - loss, c1 + 0.0 * loss, c2 + 0.0 * loss
    discriminant = c1 * c1 - 4.0 * c2 * c0
    root = np.sqrt(np.where(discriminant >= 0.0, discriminant, np.nan))
    denominator = root - c1
    # The slope at the origin is negative for every curve that still learns there; elsewhere the plain formula is safe.
    with np.errstate(divide="ignore", invalid="ignore"):
        stable = 2.0 * c0 / denominator
        plain = (-c1 - root) / (2.0 * c2)
    crossing = np.where(c1 < 0.0, stable, plain)
    return np.where(np.isfinite(crossing) & (root > 0.0), crossing, np.nan)


def target_losses(
    curves: Mapping[str, Sequence[DecayedCurve]], *, fractions: Sequence[float] = TARGET_FRACTIONS
) -> tuple[Target, ...]:
    """The worst variant's seed-mean decayed loss at each fraction of its own budget; the first is the headline.

    curves: variant name -> one curve per seed. Raises ValueError where a fraction lies before the first decayed point.
    """
    if not curves:
        raise ValueError("no curves were given: pass the decayed curves of every feasible variant")
    fits = {name: _fit(of_variant) for name, of_variant in curves.items()}
    targets = []
    for fraction in fractions:
        losses = {}
        for name, fit in fits.items():
            at = fit.high + math.log(fraction) if fraction > 0 else -math.inf
            if not fit.low - _EDGE <= at <= fit.high + _EDGE:
                raise ValueError(
                    f"fraction {fraction} of the budget of {name!r} is outside its decayed points, which start at "
                    f"{math.exp(fit.low - fit.high):.3g} of it; choose a fraction between that and 1"
                )
            losses[name] = float(fit.loss_at(at).mean())
        worst = max(losses, key=lambda name: losses[name])
        targets.append(Target(loss=losses[worst], fraction=fraction, worst=worst))
    return tuple(targets)


def log_tokens_to(curve: DecayedCurve, target_loss: float) -> float:
    """ln(tokens) at which this run reaches the target: the value of one run in a design.

    nan where the run does not cross within its measured range widened by SEED_SLACK; such a cell is censored and
    only `token_gain` can say anything about it.
    """
    fit = _fit([curve])
    at = float(solve_descending(fit.coefficients, target_loss)[0]) + fit.origin
    return at if fit.low - SEED_SLACK <= at <= fit.high + SEED_SLACK else math.nan


def token_gain(
    baseline: Sequence[DecayedCurve],
    variant: Sequence[DecayedCurve],
    target_loss: float,
    *,
    confidence: float = 0.95,
    paired: bool | None = None,
) -> Gain:
    """ln(tokens of the baseline) - ln(tokens of the variant) at the target, with a t-interval over seeds.

    Paired where both sides ran the same seeds, Welch where they share none; partly shared seeds raise ValueError.
    `paired` says what the caller knows of the runs: False for those of one seed that may not be paired.
    A side whose seed mean does not cross inside its measured range gives a bound: `estimate` is None and the finite end
    of [low, high] is a one-sided confidence limit.
    """
    check_confidence(confidence)
    first, second = _fit(baseline), _fit(variant)
    paired = _is_paired(first.seeds, second.seeds) if paired is None else paired
    a, a_side = _crossings(first, target_loss)
    b, b_side = _crossings(second, target_loss)
    if a_side == b_side == "inside":
        return difference_interval(a, b, paired=paired, confidence=confidence)
    # ln(tokens) of a side is known, at least its last point (never reached), or at most its first (reached before it).
    a_low, a_high = _limits(a, a_side, first, confidence)
    b_low, b_high = _limits(b, b_side, second, confidence)
    low, high = a_low - b_high, a_high - b_low
    bound: Bound = "at least" if math.isfinite(low) else "at most" if math.isfinite(high) else "unknown"
    return Gain(estimate=None, low=low, high=high, n=len(second.seeds), df=math.nan, bound=bound, confidence=confidence)


def losses_at(curves: Sequence[DecayedCurve], tokens: float) -> FloatArray:
    """Each seed's decayed loss at a number of tokens, (seeds,) by increasing seed; nan outside the measured range."""
    fit = _fit(curves)
    inside = fit.low - _EDGE <= math.log(tokens) <= fit.high + _EDGE
    return fit.loss_at(math.log(tokens)) if inside else np.full(len(curves), np.nan)


def shifted(gain: Gain, exact: float) -> Gain:
    """The gain together with another channel that is known exactly."""
    estimate = None if gain.estimate is None else gain.estimate + exact
    return replace(gain, estimate=estimate, low=gain.low + exact, high=gain.high + exact)


def loss_slope(curves: Sequence[DecayedCurve], target_loss: float) -> float:
    """Nats per e-fold of tokens, -dL/d ln(tokens), of the seed-mean curve at the target. Raises if not reached."""
    fit = _fit(curves)
    mean = fit.coefficients.mean(axis=0)
    x = float(solve_descending(mean, target_loss))
    if math.isnan(x):
        raise ValueError(f"the curve never falls to {target_loss:.4f}; its slope there is not defined")
    return float(-(mean[1] + 2.0 * mean[2] * x))


def difference_interval(a: FloatArray, b: FloatArray, *, paired: bool, confidence: float) -> Gain:
    """Mean of a minus mean of b with its t-interval; Welch-Satterthwaite where the seeds differ."""
    if len(a) < 2 or len(b) < 2:
        raise ValueError(f"an interval needs at least 2 seeds on each side, got {len(a)} and {len(b)}; add seeds")
    if paired:
        error, df = float((a - b).std(ddof=1) / math.sqrt(len(a))), float(len(a) - 1)
    else:
        _, welch_error, welch_df, _ = welch(a.tolist(), b.tolist())
        assert welch_error is not None
        assert welch_df is not None
        error, df = welch_error, welch_df
    estimate = float(a.mean() - b.mean())
    low, high = interval(estimate, error, df, confidence)
    return Gain(
        estimate=estimate,
        low=low,
        high=high,
        n=len(b),
        df=df,
        bound="exact",
        confidence=confidence,
        standard_error=error,
    )


def _fit(curves: Sequence[DecayedCurve]) -> _Fit:
    seeds = tuple(curve.seed for curve in curves)
    if not curves or len(set(seeds)) != len(seeds):
        raise ValueError(f"a variant needs one curve for each of its seeds, got seeds {list(seeds)}")
    ordered = sorted(curves, key=lambda curve: curve.seed)
    logs = [np.log(np.array(curve.tokens)) for curve in ordered]
    origin = float(np.mean([x.mean() for x in logs]))
    rows = [quadratic_coefficients(x - origin, np.array(c.loss)) for x, c in zip(logs, ordered, strict=True)]
    return _Fit(
        seeds=tuple(curve.seed for curve in ordered),
        origin=origin,
        coefficients=np.array(rows),
        low=float(max(x[0] for x in logs)),
        high=float(min(x[-1] for x in logs)),
    )


def _is_paired(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    if a == b:
        return True
    shared = sorted(set(a) & set(b))
    if shared:
        odd = sorted(set(a) ^ set(b))
        raise ValueError(
            f"seeds {shared} ran on both sides but {odd} on one only; run the missing ones, or use seeds that differ"
        )
    return False


def _crossings(fit: _Fit, target_loss: float) -> tuple[FloatArray, Literal["inside", "after", "before"]]:
    """ln(tokens) of every seed (seeds,), and where the seed mean crosses; all nan unless every seed counts."""
    mean_x = float(solve_descending(fit.coefficients.mean(axis=0), target_loss)) + fit.origin
    nothing = np.full(len(fit.seeds), np.nan)
    if float(fit.loss_at(fit.low).mean()) < target_loss - _EDGE:
        return nothing, "before"
    if math.isnan(mean_x) or not fit.low - _EDGE <= mean_x <= fit.high + _EDGE:
        return nothing, "after"
    each = solve_descending(fit.coefficients, target_loss) + fit.origin
    if np.isnan(each).any() or each.max() > fit.high + SEED_SLACK:
        return nothing, "after"
    if each.min() < fit.low - SEED_SLACK:
        return nothing, "before"
    return each, "inside"


def _limits(crossings: FloatArray, side: str, fit: _Fit, confidence: float) -> tuple[float, float]:
    """Lowest and highest ln(tokens) a side can have: one-sided t-limits of the mean where it was measured."""
    if side == "after":
        return fit.high, math.inf
    if side == "before":
        return -math.inf, fit.low
    n = len(crossings)
    if n < 2:
        raise ValueError("a bound needs at least 2 seeds on the side that reaches the target; add seeds")
    half = t_quantile(confidence, n - 1) * float(crossings.std(ddof=1)) / math.sqrt(n)
    mean = float(crossings.mean())
    return mean - half, mean + half
