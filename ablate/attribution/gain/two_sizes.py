"""How an effect changes between two sizes: per decade of compute, with its interval, and nothing beyond them.

Two sizes give no spread from size to size, so there is no line and no prediction: `scale.fit_trend` needs three.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ablate.attribution.gain.scale import SizeEffect
from ablate.attribution.verdicts import check_confidence, interval


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeChange:
    """Change of an effect per decade of training FLOPs between two sizes, in the unit of the effect."""

    per_decade: float
    low: float
    high: float
    decades: float  # between the two sizes


def change_between(
    first: SizeEffect, second: SizeEffect, *, dfs: tuple[float, float], confidence: float = 0.95
) -> SizeChange:
    """The second effect minus the first over the decades between them, the second being the larger size.

    The two were measured apart, so variances add and degrees of freedom are Satterthwaite's (`dfs`: of the two standard
    errors). Noise of the runs is all that the interval knows of. ValueError where the second size is not the larger.
    """
    check_confidence(confidence)
    decades = math.log10(second.flops / first.flops)
    if decades <= 0:
        raise ValueError(
            f"a change with size needs a larger size second, got {first.flops:.3g} and then {second.flops:.3g} FLOPs"
        )
    variances = first.standard_error**2, second.standard_error**2
    parts = sum(variance**2 / df for variance, df in zip(variances, dfs, strict=True))
    df = sum(variances) ** 2 / parts if parts else math.inf
    estimate = second.estimate - first.estimate
    low, high = interval(estimate, math.sqrt(sum(variances)), df, confidence)
    return SizeChange(per_decade=estimate / decades, low=low / decades, high=high / decades, decades=decades)
