"""How large the noise of runs is, and how well that is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtri

from ablate.attribution.verdicts import check_confidence


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseFloor:
    """Spread of runs of one and the same variant over seeds, pooled over variants."""

    sd: float
    df: int

    def ends(self, confidence: float) -> tuple[float, float]:
        """Confidence interval of the sd."""
        return sd_ends(self.sd, self.df, confidence)


def sd_ends(sd: float, df: float, confidence: float) -> tuple[float, float]:
    """Confidence interval of the sd of normal noise from one with `df` degrees of freedom: of one, 0.45 to 32 times."""
    check_confidence(confidence)
    tail = 0.5 - confidence / 2
    low, high = (sd * float(df / chdtri(df, p)) ** 0.5 for p in (tail, 1 - tail))
    return low, high


def noise_floor(groups: Mapping[str, Sequence[float]]) -> NoiseFloor:
    """Pooled within-variant sd (variant -> metric of each seed). ValueError without any variant that ran twice."""
    squares, df = 0.0, 0
    for name, values in groups.items():
        x = np.asarray(values, dtype=np.float64)
        if not np.isfinite(x).all():
            raise ValueError(
                f"variant {name!r} has a value that is not finite; take diverged runs out and report their rate"
            )
        if len(x) > 1:
            squares += float(((x - x.mean()) ** 2).sum())
            df += len(x) - 1
    if df == 0:
        raise ValueError("no variant ran with two seeds, so the noise floor is unknown; repeat one variant")
    return NoiseFloor(sd=(squares / df) ** 0.5, df=df)
