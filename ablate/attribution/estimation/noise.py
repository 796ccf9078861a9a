"""How large noise is, and what it hides: A/A noise floor, detectable effect, divergence rate, spike-in check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ablate.attribution.verdicts import POWER, check_confidence, t_quantile


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseFloor:
    """Spread of runs of one and the same variant over seeds, pooled over variants."""

    sd: float
    df: int

    def detectable(self, n: int, *, correlation: float = 0.0, confidence: float = 0.95, power: float = POWER) -> float:
        """Smallest true difference that n seeds a side show with this power.

        correlation: between the two variants over shared seeds; 0 for unpaired runs. ValueError below two seeds.
        """
        check_confidence(confidence)
        if n < 2:
            raise ValueError(f"{n} seeds were given; a detectable effect needs at least two on each side")
        if not -1 <= correlation <= 1:
            raise ValueError(f"correlation {correlation} was given; it lies between -1 and 1")
        df = n - 1 if correlation else 2 * (n - 1)
        error = self.sd * (2 * (1 - correlation) / n) ** 0.5
        return (t_quantile(0.5 + confidence / 2, df) + t_quantile(power, df)) * error


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
