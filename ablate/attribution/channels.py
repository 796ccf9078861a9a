"""The exact split of a log-cost gain in three channels: tokens, FLOPs per token, FLOP/s.

ln(seconds) = ln(tokens to the target) + ln(FLOPs per token) - ln(achieved FLOP/s), and every attribution here is linear
in the values of the variants, so a component's gain is the sum of its three channel gains and each channel's gains sum
to that channel's total. Loss noise touches the first channel only, the second is exact, the third comes from timings.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

CHANNELS = ("tokens", "flops per token", "flops per s")
_EXACT = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantCost:
    """What one variant needs to reach the target loss."""

    variant: str
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
    gains: FloatArray  # (components, 3)
    errors: FloatArray  # (components, 3), standard errors under independent variants; 0 for FLOPs per token

    @property
    def by_component(self) -> FloatArray:
        """Total log-cost gain of each component, (components,)."""
        return np.asarray(self.gains.sum(axis=1))

    @property
    def by_channel(self) -> FloatArray:
        """Total log-cost gain of each channel, (3,)."""
        return np.asarray(self.gains.sum(axis=0))

    @property
    def total(self) -> float:
        """Log-cost gain of the full recipe over the baseline."""
        return float(self.gains.sum())

    @property
    def component_errors(self) -> FloatArray:
        """Standard error of each component's total; losses and timings are measured apart, so variances add."""
        return np.asarray(np.sqrt((self.errors**2).sum(axis=1)))


def channel_values(costs: Sequence[VariantCost], *, baseline: int) -> FloatArray:
    """Log-cost gain of every variant over the one at index `baseline`, by channel: (variants, 3)."""
    logs = np.array([[c.log_tokens, math.log(c.flops_per_token), -math.log(c.flops_per_s)] for c in costs])
    return np.asarray(logs[baseline] - logs)


def channel_table(
    components: Sequence[str], weights: FloatArray, costs: Sequence[VariantCost], *, baseline: int, full: int
) -> ChannelTable:
    """Attribute each channel with one set of weights over the variants.

    weights: (components, variants), an efficient value such as Owen-precedence: its columns sum to +1 at the full
    recipe, -1 at the baseline and 0 elsewhere. Raises ValueError for weights that are not, because then the columns of
    the table would not add up to the total.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (len(components), len(costs)):
        raise ValueError(
            f"weights have shape {weights.shape} but there are {len(components)} components and {len(costs)} variants"
        )
    expected = np.zeros(len(costs))
    expected[full] += 1.0
    expected[baseline] -= 1.0
    if np.abs(weights.sum(axis=0) - expected).max() > _EXACT:
        raise ValueError(
            "these weights do not share out the whole gain (add-one-in and leave-one-out do not); use an efficient "
            "value such as Owen-precedence for the channel table"
        )
    values = channel_values(costs, baseline=baseline)
    variances = np.array([[c.log_tokens_error**2, 0.0, c.log_rate_error**2] for c in costs])
    table = ChannelTable(components=tuple(components), gains=weights @ values, errors=np.sqrt(weights**2 @ variances))
    scale = max(1.0, float(np.abs(values).max()))
    assert np.abs(table.by_channel - values[full]).max() <= _EXACT * scale
    assert np.abs(table.by_component - weights @ values.sum(axis=1)).max() <= _EXACT * scale
    return table
