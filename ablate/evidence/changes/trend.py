"""How the saving in tokens of a change moves with size, and how far that may be read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ablate.attribution.gain.scale import (
    CLAIM_DECADES,
    FULL_LADDER_DECADES,
    FULL_LADDER_SIZES,
    ScalePrediction,
    SizeEffect,
)
from ablate.attribution.gain.two_sizes import change_between
from ablate.attribution.study.ladder import AtSize, ladders
from ablate.evidence.changes.measured import Measured

TOKENS = "ln of the tokens for the same loss, without over with"


@dataclass(frozen=True, kw_only=True, slots=True)
class Trend:
    """Change of ln of the saving in tokens per decade of training FLOPs. `prediction`: from three sizes on."""

    n_sizes: int
    per_decade: float | None
    low: float | None
    high: float | None
    prediction: ScalePrediction | None
    reason: str  # why there is none, or ""

    @property
    def resolved(self) -> bool:
        """Whether its interval lies on one side of zero."""
        return self.low is not None and self.high is not None and self.low * self.high > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """Up to which training FLOPs measurements allow a claim, and how many decades further a model's training lies."""

    largest_flops: float
    claims_end_flops: float
    n_sizes: int  # of the change that was measured at the fewest
    model: str
    model_flops: float
    decades_beyond: float  # of the model behind the end of claims; negative inside them


def trend(sizes: Sequence[Measured]) -> Trend:
    """Over the sizes of one change, from small to large, as `by_size` gives them."""
    known = [(m, m.tokens) for m in sizes if m.tokens is not None and m.tokens.standard_error]
    flops = {m.flops for m, _ in known}
    if len(known) < 2 or len(flops) < len(known):
        why = "measured at one size" if len(flops) == 1 else "not measured" if not known else "two studies of one size"
        return Trend(n_sizes=len(flops), per_decade=None, low=None, high=None, prediction=None, reason=why)
    confidence = min(m.study.confidence for m, _ in known)
    if len(known) == 2:
        effects = [
            SizeEffect(flops=m.flops, estimate=cost.estimate or 0.0, standard_error=cost.standard_error or 0.0)
            for m, cost in known
        ]
        first, second = (math.inf if cost.df is None else cost.df for _, cost in known)
        found = change_between(*effects, dfs=(first, second), confidence=confidence)
        return Trend(n_sizes=2, per_decade=found.per_decade, low=found.low, high=found.high, prediction=None, reason="")
    at = [
        AtSize(component=m.component, at="", size=m.study.preset, flops=m.flops, estimate=cost.estimate, low=cost.low,
               high=cost.high)
        for m, cost in known
    ]  # fmt: skip
    (ladder,) = ladders(at, TOKENS, confidence)
    if ladder.trend is None:
        return Trend(
            n_sizes=len(known), per_decade=None, low=None, high=None, prediction=None, reason=ladder.reason
        )  # fmt: skip
    low, high = ladder.trend.slope_interval
    return Trend(n_sizes=len(known), per_decade=ladder.trend.slope, low=low, high=high, prediction=ladder.prediction,
                 reason="")  # fmt: skip


def reach(by_change: Sequence[Sequence[Measured]], model: str, model_flops: float) -> Reach | None:
    """None where nothing was measured. `by_change`: the sizes of each change; those of one say nothing of another.

    Claims end half a decade beyond the largest size, unless every change that was measured has four sizes over a decade
    and a half, whose band goes on (`gain.scale`); then they are said to end nowhere (infinite).
    """
    ladders = [sorted({m.flops for m in sizes}) for sizes in by_change if sizes]
    if not ladders:
        return None
    largest, n_sizes = max(ladder[-1] for ladder in ladders), min(map(len, ladders))
    wide = all(math.log10(ladder[-1] / ladder[0]) >= FULL_LADDER_DECADES - 1e-6 for ladder in ladders)
    end = math.inf if wide and n_sizes >= FULL_LADDER_SIZES else largest * 10**CLAIM_DECADES
    return Reach(
        largest_flops=largest, claims_end_flops=end, n_sizes=n_sizes, model=model, model_flops=model_flops,
        decades_beyond=math.log10(model_flops / end) if end < math.inf else -math.inf,
    )  # fmt: skip
