"""Two variants compared over seeds: paired t where seeds agree, Welch otherwise, refusal where a run is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ablate.attribution.lattice import Floats
from ablate.attribution.verdicts import (
    NOT_RESOLVED,
    Effect,
    check_confidence,
    check_margin,
    decide,
    interval,
    units_to_resolve,
)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and t-interval (mean, low, high). ValueError below two values or where one is not finite."""
    check_confidence(confidence)
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < 2:
        raise ValueError(f"an interval needs at least two values, got {x.size}; run more seeds")
    if not np.isfinite(x).all():
        raise ValueError(f"value {int(np.argmin(np.isfinite(x)))} is not finite; a diverged run has no place in a mean")
    mean, sd = mean_and_sd(x)
    low, high = interval(mean, sd / len(x) ** 0.5, len(x) - 1, confidence)
    return mean, low, high


def mean_and_sd(values: Sequence[float] | Floats) -> tuple[float, float]:
    """Mean and sample sd around the first value, so that identical values have exactly their mean and sd 0."""
    x = np.asarray(values, dtype=np.float64)
    shifted = x - x[0]
    return float(x[0] + shifted.mean()), float(shifted.std(ddof=1)) if len(x) > 1 else 0.0


def compare_pairs(
    on: Mapping[int, float | None],
    off: Mapping[int, float | None],
    *,
    name: str = "effect",
    unit: str = "",
    margin: float = 0.0,
    confidence: float = 0.95,
    lower_is_better: bool = True,
    pairing_ok: bool = True,
) -> Effect:
    """Effect of a component from the metric of each seed with it on and off (seed -> value).

    Same seeds and pairing_ok (the caller compared the hashes of data order and initial values): paired t. No seed in
    common, or pairing not ok: Welch. A seed on one side only, or a value that is None or not finite (a run that failed
    or diverged), refuses the interval: `low` and `high` are None and `reason` names the run. The estimate is then that
    of the complete pairs. ValueError where one side has no run, or for a bad margin or confidence.
    """
    check_confidence(confidence)
    check_margin(margin)
    if not on or not off:
        raise ValueError(f"{name}: the side {'on' if not on else 'off'} has no run; both sides need runs to compare")
    paired = pairing_ok and bool(set(on) & set(off))
    x, y = _finite(on), _finite(off)
    lost = _missing(on, off, x, y, paired)
    if paired:
        common = sorted(set(x) & set(y))
        estimate, error, df, sd, n = _paired([x[s] - y[s] for s in common])
        method = f"paired t over {n} seeds"
    else:
        estimate, error, df, sd = welch(list(x.values()), list(y.values()))
        n = len(x) + len(y)
        method = f"Welch t, {len(x)} and {len(y)} runs"
    if lost is None and error is None:
        lost = "one seed gives no interval; run at least two" if paired else "each side needs two runs for an interval"
    if lost is not None or estimate is None or error is None or df is None:
        return Effect(
            name=name, unit=unit, estimate=estimate, low=None, high=None, n=n, verdict=NOT_RESOLVED, sd=sd,
            method=method, reason=lost, margin=margin, confidence=confidence,
        )  # fmt: skip
    low, high = interval(estimate, error, df, confidence)
    verdict = decide(estimate, error, df, margin=margin, confidence=confidence, lower_is_better=lower_is_better)
    further = _further_seeds(estimate, error, df, n if paired else min(len(x), len(y)), paired, margin, confidence)
    if verdict != NOT_RESOLVED:
        further = 0
    return Effect(
        name=name, unit=unit, estimate=estimate, low=low, high=high, n=n, verdict=verdict, standard_error=error,
        df=df, sd=sd, method=method, seeds_to_resolve=further,
        runs_to_resolve=None if further is None else 2 * further, margin=margin, confidence=confidence,
    )  # fmt: skip


def welch(x: Sequence[float], y: Sequence[float]) -> tuple[float | None, float | None, float | None, float | None]:
    """Mean of x minus mean of y: (estimate, standard error, Satterthwaite df, pooled sd); None where not defined."""
    if not x or not y:
        return None, None, None, None
    (mean_x, sd_x), (mean_y, sd_y) = mean_and_sd(x), mean_and_sd(y)
    estimate = mean_x - mean_y
    if len(x) < 2 or len(y) < 2:
        return estimate, None, None, None
    pooled_df = float(len(x) + len(y) - 2)
    sd = (((len(x) - 1) * sd_x**2 + (len(y) - 1) * sd_y**2) / pooled_df) ** 0.5
    error = (sd_x**2 / len(x) + sd_y**2 / len(y)) ** 0.5
    # Without noise every df gives the same interval. Each side less its first value has the same df, to the last digit.
    shifted = (np.asarray(side) - side[0] for side in (x, y))
    return estimate, error, _welch_df(*shifted) if error > 0 else pooled_df, sd


def _welch_df(x: Floats, y: Floats) -> float:
    from scipy.stats import ttest_ind  # a third of a report's imports, for runs that are no pairs

    return float(ttest_ind(x, y, equal_var=False).df)


def _paired(differences: Sequence[float]) -> tuple[float | None, float | None, float | None, float | None, int]:
    n = len(differences)
    if n < 2:
        return (differences[0] if n else None), None, None, None, n
    mean, sd = mean_and_sd(differences)
    return mean, sd / n**0.5, n - 1.0, sd, n


def _finite(side: Mapping[int, float | None]) -> dict[int, float]:
    return {seed: float(value) for seed, value in side.items() if value is not None and np.isfinite(value)}


def _missing(
    on: Mapping[int, float | None],
    off: Mapping[int, float | None],
    x: Mapping[int, float],
    y: Mapping[int, float],
    paired: bool,
) -> str | None:
    """Sentence naming the runs that are missing or diverged; None where every one is there."""
    found = [f"seed {s} of {side} has no number" for side, all_, kept in (("on", on, x), ("off", off, y))
             for s in sorted(set(all_) - set(kept))]  # fmt: skip
    if paired:
        found += [f"seed {s} has no run on" for s in sorted(set(off) - set(on))]
        found += [f"seed {s} has no run off" for s in sorted(set(on) - set(off))]
    if not found:
        return None
    return f"the interval is refused because {', '.join(found)}; run what is missing, a diverged run with a new seed"


def _further_seeds(
    estimate: float, error: float, df: float, n: int, paired: bool, margin: float, confidence: float
) -> int | None:
    found = units_to_resolve(
        estimate, error, df, n=n, df_per_unit=1 if paired else 2,
        margin=margin, confidence=confidence,
    )  # fmt: skip
    return None if found is None else max(found - n, 1)
