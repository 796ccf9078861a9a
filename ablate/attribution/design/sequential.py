"""Looking at results before the last run: three planned looks, or an e-process that may be watched at every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ablate.attribution.verdicts import check_confidence

PLANNED_LOOKS = (5, 10, 20)  # seeds at which a study may be read when nothing else is planned


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """One planned reading of a study."""

    n: int  # seeds
    confidence: float  # of the intervals at this look, so that all looks together keep the overall confidence


def planned_looks(seeds: Sequence[int] = PLANNED_LOOKS, *, confidence: float = 0.95) -> tuple[Look, ...]:
    """Readings with alpha split equally (Bonferroni); at most three, else use `e_value`. ValueError names bad plans."""
    check_confidence(confidence)
    if not 1 <= len(seeds) <= 3 or list(seeds) != sorted(set(seeds)) or seeds[0] < 2:
        raise ValueError(f"looks at {list(seeds)} seeds were given; plan one to three growing numbers, the first >= 2")
    return tuple(Look(n=n, confidence=1 - (1 - confidence) / len(seeds)) for n in seeds)


def looks_up_to(most: int | None) -> tuple[int, ...]:
    """Seeds of three readings of which the last has `most`: a quarter, half and all of them, as far as they differ."""
    if most is None:
        return PLANNED_LOOKS
    return tuple(sorted({max(2, -(-most // parts)) for parts in (4, 2, 1)}))


def look_at(looks: Sequence[Look], n: int) -> Look:
    """The look planned at n seeds. ValueError at any other number: an unplanned look is not paid for."""
    for look in looks:
        if look.n == n:
            return look
    planned = ", ".join(str(look.n) for look in looks)
    raise ValueError(f"{n} seeds are finished, but looks are planned at {planned}; wait, or use the e-process")


def e_value(values: Sequence[float], *, mean: float = 0.0, g: float = 1.0) -> float:
    """Evidence against "the expected value is `mean`" from the values so far; valid at every n (t-mixture e-process).

    Bayes factor of the t statistic under a normal prior of variance g on the standardised effect (Rouder et al. 2009;
    anytime validity: Grunwald, de Heide, Koolen 2024). Reject at 1/alpha or more, whenever that happens. 1 below two
    values. Identical values: 1 if they equal `mean`, infinite otherwise.
    """
    x = np.asarray(values, dtype=np.float64) - mean
    n = len(x)
    if n < 2:
        return 1.0
    sd = float(x.std(ddof=1))
    if sd == 0:
        return 1.0 if x[0] == 0 else float("inf")
    nu = n - 1
    t2 = float(x.mean()) ** 2 * n / sd**2
    shrunk = 1 + n * g
    log_bf = -0.5 * np.log(shrunk) + (nu + 1) / 2 * (np.log1p(t2 / nu) - np.log1p(t2 / (nu * shrunk)))
    return float(np.exp(min(log_bf, 700.0)))


def e_interval(values: Sequence[float], *, confidence: float = 0.95, g: float = 1.0) -> tuple[float, float] | None:
    """Interval that may be read at every n: all means whose e-value stays below 1/alpha. None while it is unbounded.

    Closed form: e < 1/alpha is t^2 < nu (r - 1) / (1 - r / (1 + n g)) with r = (sqrt(1 + n g) / alpha)^(2 / (nu + 1)).
    """
    check_confidence(confidence)
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    if n < 2:
        return None
    shrunk = 1 + n * g
    r = (np.sqrt(shrunk) / (1 - confidence)) ** (2 / n)
    if r >= shrunk:
        return None
    half = float(np.sqrt((n - 1) * (r - 1) / (1 - r / shrunk)) * x.std(ddof=1) / np.sqrt(n))
    return float(x.mean()) - half, float(x.mean()) + half
