"""Effects, the four verdicts, multiplicity, and how many more runs would decide. All intervals are t-intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv, ndtr, ndtri, stdtr, stdtrit

from ablate.attribution.lattice import Floats
from ablate.quantities import listed

GAIN = "gain"
HARM = "harm"
NO_EFFECT = "no effect within the margin"
NOT_RESOLVED = "not resolved"
VERDICTS = (GAIN, HARM, NO_EFFECT, NOT_RESOLVED)

POWER = 0.8  # chance that the stated number of further runs decides, if the estimate is the truth
MAX_UNITS = 100_000  # beyond this a number of runs is no advice


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """A difference on minus off, with its interval and what may be said of it."""

    name: str
    unit: str
    estimate: float | None
    low: float | None  # None where an interval is refused; `reason` says why
    high: float | None
    n: int  # independent units behind the interval: seeds when paired, runs otherwise
    verdict: str  # one of VERDICTS
    confidence: float = 0.95
    margin: float = 0.0  # differences up to this size are of no interest; unit of the estimate
    standard_error: float | None = None
    df: float | None = None
    sd: float | None = None  # of one unit: of the paired differences, or pooled within the two groups
    runs_to_resolve: int | None = None  # further runs; 0 when resolved, None where no number can be given
    seeds_to_resolve: int | None = None  # the same in seeds
    method: str = ""
    reason: str | None = None
    family: int = 1  # effects that gain and harm are corrected over together (Holm)


def t_quantile(p: float, df: float) -> float:
    """Quantile of Student's t; df may be infinite (normal)."""
    return float(ndtri(p)) if np.isinf(df) else float(stdtrit(df, p))


def t_cdf(t: float, df: float) -> float:
    """P(T <= t) of Student's t; df may be infinite (normal)."""
    return float(ndtr(t)) if np.isinf(df) else float(stdtr(df, t))


def check_confidence(confidence: float) -> None:
    """ValueError unless the confidence can make both a two-sided interval and an equivalence test."""
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence {confidence} was given; it lies between 0.5 and 1, for example 0.95")


def check_margin(margin: float) -> None:
    """ValueError unless the margin is a finite number from 0 up."""
    if not (np.isfinite(margin) and margin >= 0):
        raise ValueError(f"margin {margin} was given; it is a size in the unit of the metric, 0 or more")


def interval(estimate: float, standard_error: float, df: float, confidence: float) -> tuple[float, float]:
    """Two-sided t-interval."""
    half = t_quantile(0.5 + confidence / 2, df) * standard_error
    return estimate - half, estimate + half


def decide(
    estimate: float,
    standard_error: float,
    df: float,
    *,
    margin: float = 0.0,
    confidence: float = 0.95,
    lower_is_better: bool = True,
) -> str:
    """The verdict on one effect (on minus off).

    gain or harm: the interval lies wholly beyond the margin on the better or worse side. No effect within the margin:
    the interval of confidence 1 - 2 alpha lies inside it (two one-sided tests, Schuirmann 1987). Else not resolved.
    """
    low, high = interval(estimate, standard_error, df, confidence)
    if lower_is_better:
        low, high = -high, -low
    if low > margin:
        return GAIN
    if high < -margin:
        return HARM
    inner_low, inner_high = interval(estimate, standard_error, df, 2 * confidence - 1)
    return NO_EFFECT if -margin <= inner_low and inner_high <= margin else NOT_RESOLVED


def beyond_margin_p(estimate: float, standard_error: float, df: float, margin: float) -> float:
    """Two-sided p-value of |effect| <= margin; at most alpha exactly where the interval lies beyond the margin."""
    beyond = abs(estimate) - margin
    if standard_error == 0:
        return 0.0 if beyond > 0 else 1.0
    return min(1.0, 2 * t_cdf(-beyond / standard_error, df))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that control the chance of any false rejection (Holm 1979)."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    out = np.empty_like(p)
    out[order] = np.minimum(stepped, 1.0)
    return out.tolist()


def holm_verdicts(
    tests: Mapping[str, tuple[float, float, float]],
    *,
    margin: float = 0.0,
    confidence: float = 0.95,
    lower_is_better: bool = True,
) -> dict[str, str]:
    """The verdict on each of several effects, name -> (estimate, standard error, df).

    As `decide`, and a gain or harm must also survive Holm's correction over all of them; else it is not resolved.
    """
    adjusted = holm([beyond_margin_p(*test, margin) for test in tests.values()])
    out = {}
    for (name, test), p in zip(tests.items(), adjusted, strict=True):
        verdict = decide(*test, margin=margin, confidence=confidence, lower_is_better=lower_is_better)
        lost = verdict in (GAIN, HARM) and p > 1 - confidence
        out[name] = NOT_RESOLVED if lost else verdict
    return out


def with_holm(effects: Mapping[str, Effect]) -> dict[str, Effect]:
    """The effects of one question with verdicts that hold together; those without an interval are not counted."""
    tests = {
        name: (e.estimate, e.standard_error, e.df)
        for name, e in effects.items()
        if e.estimate is not None and e.standard_error is not None and e.df is not None
    }
    out = dict(effects)
    for name in tests:
        e = effects[name]
        verdict = holm_verdicts(tests, margin=e.margin, confidence=e.confidence)[name]
        seeds, runs = (e.seeds_to_resolve, e.runs_to_resolve) if verdict == NOT_RESOLVED else (0, 0)
        out[name] = replace(e, verdict=verdict, family=len(tests), seeds_to_resolve=seeds, runs_to_resolve=runs)
    return out


def has_no_spread(standard_error: float, size: float) -> bool:
    """Whether a standard error is zero but for the rounding of floating-point numbers of this size."""
    return standard_error <= 1e-12 * size


def no_spread_warning(names: Sequence[str]) -> str:
    """Why an interval of no width is no certainty."""
    return (
        f"{listed(names)}: the difference is the same in every repeat, so the interval has no width; runs that copy "
        "each other, or results rounded to few decimals, look like this"
    )


def max_t_critical(covariance: Floats, df: float, confidence: float = 0.95, *, draws: int = 65_536) -> float:
    """Half-width in standard errors of intervals that hold together for all effects: quantile of max |T|.

    Multivariate t with the correlation of the effects: seeded Monte Carlo over the normal part (accurate to about
    0.006), quadrature over the chi part. Effects without noise are left out. One effect: the t quantile itself.
    """
    sizes = np.sqrt(np.diag(covariance))
    noisy = sizes > 0
    if noisy.sum() == 0:
        return 0.0
    single = t_quantile(0.5 + confidence / 2, df)
    if noisy.sum() == 1:
        return single
    correlation = covariance[np.ix_(noisy, noisy)] / np.outer(sizes[noisy], sizes[noisy])
    values, vectors = np.linalg.eigh(correlation)
    root = (vectors * np.sqrt(np.maximum(values, 0))).astype(np.float32)
    largest = np.sort(np.abs(_normal_draws(draws, len(root)) @ root.T).max(axis=1))
    if np.isinf(df):
        return max(float(np.quantile(largest, confidence)), single)
    chi = np.sqrt(2 * gammaincinv(df / 2, (np.arange(2000) + 0.5) / 2000) / df)
    low, high = single, single * 10
    while high - low > 1e-4:
        middle = (low + high) / 2
        covered = np.searchsorted(largest, middle * chi).mean() / draws
        low, high = (low, middle) if covered >= confidence else (middle, high)
    return (low + high) / 2


@lru_cache(maxsize=4)
def _normal_draws(draws: int, size: int) -> NDArray[np.float32]:
    """Always the same draws, so that a table gives the same interval twice."""
    return np.random.default_rng(20241226).standard_normal((draws, size), dtype=np.float32)


def units_to_resolve(
    estimate: float,
    standard_error: float,
    df: float,
    *,
    n: int,
    margin: float = 0.0,
    confidence: float = 0.95,
    power: float = POWER,
    df_per_unit: float = 1.0,
) -> int | None:
    """Number of units (seeds or runs) in all, at least n, that resolves with this power if the estimate is the truth.

    Beyond the margin: (t_confidence + t_power) * se <= |estimate| - margin. Inside it: the same for both one-sided
    tests of equivalence. The standard error shrinks as 1/sqrt(units). None: no number up to 100 000 would.
    """
    distance = abs(estimate) - margin
    if distance > 0:
        levels = (0.5 + confidence / 2, power)
    else:
        levels = (confidence, (1 + power) / 2)

    def enough(units: int) -> bool:
        now = df + df_per_unit * (units - n)
        scale = sum(t_quantile(level, now) for level in levels)
        return scale * standard_error * (n / units) ** 0.5 <= abs(distance)

    if standard_error == 0:
        return n if distance != 0 else None
    if distance == 0 or not enough(MAX_UNITS):
        return None
    low, high = n - 1, MAX_UNITS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def seeds_needed(difference: float, sd: float, *, margin: float, confidence: float = 0.95, power: float = POWER) -> int:
    """Pairs of seeds that resolve a true difference when single pairs differ with this sd (planning, nothing measured).

    A difference inside the margin is planned for equivalence. ValueError where no number up to 100 000 would do.
    """
    if sd < 0 or not np.isfinite(sd):
        raise ValueError(f"sd {sd} was given; the sd of paired differences is a finite number, 0 or more")
    found = units_to_resolve(difference, sd / 2**0.5, 1.0, n=2, margin=margin, confidence=confidence, power=power)
    if found is None:
        raise ValueError(
            f"a difference of {difference:g} cannot be told from the margin {margin:g} with sd {sd:g} by any practical "
            f"number of seeds; change the margin or reduce the noise"
        )
    return found
