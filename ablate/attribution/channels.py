"""The exact split of a log-cost gain in three channels: tokens, FLOPs per token, FLOP/s.

ln(seconds) = ln(tokens to the target) + ln(FLOPs per token) - ln(achieved FLOP/s), and every attribution here is linear
in the values of the variants, so a component's gain is the sum of its three channel gains and each channel's gains sum
to that channel's total. Loss noise touches the first channel only, the second is exact, the third comes from timings.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ablate.attribution.games import Floats, Lattice
from ablate.attribution.indices import index_weights, total_weights

CHANNELS = ("tokens", "flops per token", "flops per s")
_EXACT = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantCost:
    """What one variant needs to reach the target loss."""

    variant: str  # its label in the lattice
    log_tokens: float  # ln(tokens) at the target; see compute_gain.log_tokens_to
    flops_per_token: float  # training FLOPs, closed form
    flops_per_s: float  # achieved, per device
    log_tokens_error: float = 0.0  # standard error of log_tokens
    log_rate_error: float = 0.0  # standard error of ln(flops_per_s), over process restarts

    def __post_init__(self) -> None:
        if not math.isfinite(self.log_tokens):
            raise ValueError(
                f"{self.variant} never reaches the target loss inside its measured range; choose the target by the "
                "worst variant's decayed loss, or extend that run"
            )
        if not (0 < self.flops_per_token < math.inf and 0 < self.flops_per_s < math.inf):
            raise ValueError(
                f"{self.variant}: FLOPs per token and FLOP/s must be positive and finite, got "
                f"{self.flops_per_token} and {self.flops_per_s}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelTable:
    """Components x channels, as natural logs of cost factors; positive is cheaper. exp(gain) is the factor."""

    components: tuple[str, ...]
    gains: Floats  # (components, 3)
    errors: Floats  # (components, 3), standard errors under independent variants; 0 for FLOPs per token

    @property
    def by_component(self) -> Floats:
        """Total log-cost gain of each component, (components,)."""
        return np.asarray(self.gains.sum(axis=1))

    @property
    def by_channel(self) -> Floats:
        """Total log-cost gain of each channel, (3,)."""
        return np.asarray(self.gains.sum(axis=0))

    @property
    def total(self) -> float:
        """Log-cost gain of the full recipe over the baseline."""
        return float(self.gains.sum())

    @property
    def component_errors(self) -> Floats:
        """Standard error of each component's total; losses and timings are measured apart, so variances add."""
        return np.asarray(np.sqrt((self.errors**2).sum(axis=1)))


def channel_values(costs: Sequence[VariantCost]) -> Floats:
    """Log-cost gain of every variant over the first, the baseline, by channel: (variants, 3)."""
    logs = np.array([[c.log_tokens, math.log(c.flops_per_token), -math.log(c.flops_per_s)] for c in costs])
    return np.asarray(logs[0] - logs)


def channel_table(lattice: Lattice, costs: Sequence[VariantCost], *, index: str = "owen") -> ChannelTable:
    """Attribute each channel with one index over the whole lattice.

    costs: one for each of `lattice.cells`, in that order. Raises ValueError for an index that does not share out the
    whole gain (add-one-in, leave-one-out, Banzhaf): the columns of its table would not add up to the total.
    """
    if len(costs) != len(lattice.cells):
        raise ValueError(f"the channel table needs all {len(lattice.cells)} feasible variants, got {len(costs)} costs")
    for cell, cost in zip(lattice.cells, costs, strict=True):
        if cost.variant != lattice.label(cell):
            raise ValueError(f"the cost of {lattice.label(cell)} is missing or out of order: found {cost.variant}")
    weights = index_weights(lattice, index)
    if np.abs(weights.sum(axis=0) - total_weights(lattice)).max() > _EXACT:
        raise ValueError(f"{index} values do not add up to the whole gain; use owen for the channel table")
    values = channel_values(costs)
    variances = np.array([[c.log_tokens_error**2, 0.0, c.log_rate_error**2] for c in costs])
    table = ChannelTable(components=lattice.components, gains=weights @ values, errors=np.sqrt(weights**2 @ variances))
    scale = max(1.0, float(np.abs(values).max()))
    assert np.abs(table.by_channel - values[-1]).max() <= _EXACT * scale
    assert np.abs(table.by_component - weights @ values.sum(axis=1)).max() <= _EXACT * scale
    return table
