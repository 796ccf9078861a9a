"""The exact split of a log-cost gain in three channels: tokens, FLOPs per token, FLOP/s.

ln(seconds) = ln(tokens to the target) + ln(FLOPs per token) - ln(achieved FLOP/s), and every attribution here is linear
in the values of the variants, so a component's gain is the sum of its three channel gains and each channel's gains sum
to that channel's total. Loss noise touches the first channel only, the second is exact, the third comes from timings.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ablate.attribution.estimation.estimates import Estimates, Observations, estimate
from ablate.attribution.gain.compute_gain import DecayedCurve, log_tokens_to
from ablate.attribution.indices import index_weights, total_weights
from ablate.attribution.lattice import Floats, Lattice
from ablate.attribution.lattice import lattice as make_lattice
from ablate.attribution.verdicts import t_quantile

CHANNELS = ("tokens", "flops per token", "flops per s")
_EXACT = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredRun:
    """One run. Runs that may be paired (same seed, pairing hashes agree) have equal clusters, others None."""

    cell: int  # the variant, a bitmask of its lattice
    cluster: Hashable | None
    curve: DecayedCurve


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantSpeed:
    """What a variant costs per token and per second."""

    flops_per_token: float  # training FLOPs, closed form
    log_flops_per_s: tuple[float, ...] = ()  # ln of the achieved rate per device, one for each process restart


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ChannelTable:
    """Components x channels, as natural logs of cost factors; positive is cheaper. exp(gain) is the factor.

    The third channel is absent where no rates were given: two channels add up to the cost in FLOPs, three in seconds.
    """

    components: tuple[str, ...]
    gains: Floats  # (K, 2 or 3)
    errors: Floats  # (K, 2 or 3) standard errors; 0 for FLOPs per token
    dfs: Floats  # (K, 2 or 3) degrees of freedom of the errors; infinite where they are known

    def first(self, n: int) -> ChannelTable:
        """Its first n channels: two are the cost in FLOPs."""
        return replace(self, gains=self.gains[:, :n], errors=self.errors[:, :n], dfs=self.dfs[:, :n])

    @property
    def by_component(self) -> Floats:
        """Total log-cost gain of each component, (K,)."""
        return np.asarray(self.gains.sum(axis=1))

    @property
    def by_channel(self) -> Floats:
        """Total log-cost gain of each channel, (2 or 3,)."""
        return np.asarray(self.gains.sum(axis=0))

    @property
    def total(self) -> float:
        """Log-cost gain of the full recipe over the baseline."""
        return float(self.gains.sum())

    @property
    def component_errors(self) -> Floats:
        """Standard error of each component's total; losses and timings are measured apart, so variances add."""
        return np.asarray(np.sqrt((self.errors**2).sum(axis=1)))

    def intervals(self, confidence: float = 0.95) -> Floats:
        """(K, 2 or 3, 2) t-intervals of every cell of the table."""
        half = _quantiles(self.dfs, confidence) * self.errors
        return np.stack([self.gains - half, self.gains + half], axis=-1)

    def component_intervals(self, confidence: float = 0.95) -> Floats:
        """(K, 2) t-intervals of each component's total, degrees of freedom after Satterthwaite."""
        parts = self.errors**4 / self.dfs
        total = parts.sum(axis=1)
        df = np.divide(self.component_errors**4, total, out=np.full(len(total), np.inf), where=total > 0)
        half = _quantiles(df, confidence) * self.component_errors
        return np.stack([self.by_component - half, self.by_component + half], axis=-1)


def measured_table(
    lattice: Lattice,
    runs: Sequence[MeasuredRun],
    speeds: Mapping[int, VariantSpeed],
    target_loss: float,
    *,
    index: str = "owen",
    order: int | None = None,
    loss_neutral: Sequence[str] = (),
) -> ChannelTable:
    """The channel table of a finished study: each run's curve inverted at the target, and every variant's speed.

    runs: any design; order: interactions above it are assumed away, as in `estimate`. speeds: every feasible variant,
    with rates for all of them or for none.
    loss_neutral: components proven to leave loss and gradients alone; runs need not vary them, and their tokens channel
    is exactly zero.
    ValueError names a run that does not reach the target, a variant without a speed, or why an effect has no interval.
    """
    functionals = _efficient_weights(lattice, index)
    lacking = [lattice.label(cell) for cell in lattice.cells if cell not in speeds]
    if lacking:
        raise ValueError(f"{lacking[0]} has no FLOPs per token and rate; price and time every feasible variant")
    flops = -np.log([speeds[cell].flops_per_token for cell in lattice.cells])
    known = np.column_stack([functionals @ flops, np.zeros(len(functionals)), np.full(len(functionals), np.inf)])
    tokens = _tokens_column(lattice, functionals, runs, target_loss, order, loss_neutral)
    rates = [_rate_column(lattice, functionals, speeds)] if any(s.log_flops_per_s for s in speeds.values()) else []
    columns = np.stack([tokens, known, *rates], axis=1)
    return ChannelTable(
        components=lattice.components, gains=columns[:, :, 0], errors=columns[:, :, 1], dfs=columns[:, :, 2]
    )


def _tokens_column(
    lattice: Lattice,
    functionals: Floats,
    runs: Sequence[MeasuredRun],
    target_loss: float,
    order: int | None,
    neutral: Sequence[str],
) -> Floats:
    """(K, 3) value, standard error and degrees of freedom of ln(tokens saved); neutral components are exactly zero."""
    lattice.index([run.cell for run in runs])
    losses, of_loss = _loss_lattice(lattice, neutral)
    logs = [log_tokens_to(run.curve, target_loss) for run in runs]
    for run, log_tokens in zip(runs, logs, strict=True):
        if not math.isfinite(log_tokens):
            raise ValueError(
                f"{lattice.label(run.cell)}, seed {run.curve.seed}, does not cross the target loss {target_loss:.4f} "
                "inside its measured range; choose the target by the worst variant, or report bounds with token_gain"
            )
    seen = Observations(
        cells=tuple(of_loss[run.cell] for run in runs),
        values=tuple(-value for value in logs),
        clusters=tuple(run.cluster for run in runs),
    )
    folded = np.zeros((len(functionals), len(losses.cells)))
    np.add.at(folded.T, losses.index([of_loss[cell] for cell in lattice.cells]), functionals.T)
    moving = [k for k, name in enumerate(lattice.components) if name in losses.components]
    out = np.tile([0.0, 0.0, np.inf], (len(functionals), 1))
    out[moving] = _column(estimate(losses, seen, {lattice.components[k]: folded[k] for k in moving}, order=order))
    return out


def _rate_column(lattice: Lattice, functionals: Floats, speeds: Mapping[int, VariantSpeed]) -> Floats:
    """(K, 3) value, standard error and degrees of freedom of ln(FLOP/s); restarts are independent."""
    restarts = [(cell, rate) for cell in lattice.cells for rate in speeds[cell].log_flops_per_s]
    timed = Observations(
        cells=tuple(cell for cell, _ in restarts),
        values=tuple(rate for _, rate in restarts),
        clusters=(None,) * len(restarts),
    )
    return _column(estimate(lattice, timed, dict(zip(lattice.components, functionals, strict=True))))


def _loss_lattice(lattice: Lattice, neutral: Sequence[str]) -> tuple[Lattice, dict[int, int]]:
    """The lattice without the components that cannot move the loss, and the cell there of every cell here."""
    off = lattice.mask(neutral)
    for i, name in enumerate(lattice.components):
        if lattice.needs[i] & off and not off >> i & 1:
            needed = lattice.names(lattice.needs[i] & off)[0]
            raise ValueError(f"{needed} is said to leave the loss alone, but {name} requires it and is not")
    kept = [i for i in range(len(lattice.components)) if not off >> i & 1]
    small = make_lattice(
        [lattice.components[i] for i in kept],
        {lattice.components[i]: lattice.names(lattice.needs[i]) for i in kept},
        [names for names in (lattice.names(block & ~off) for block in lattice.blocks) if names],
    )
    return small, {cell: sum(1 << at for at, i in enumerate(kept) if cell >> i & 1) for cell in lattice.cells}


def _column(estimates: Estimates) -> Floats:
    """(k, 3) value, standard error and degrees of freedom of one channel. ValueError where one has no interval."""
    for line in estimates.lines.values():
        if line.value is None or line.standard_error is None or line.df is None:
            raise ValueError(f"{line.name}: {line.reason}")
    return np.array([[line.value, line.standard_error, line.df] for line in estimates.lines.values()], dtype=np.float64)


def _quantiles(dfs: Floats, confidence: float) -> Floats:
    return np.array([t_quantile(0.5 + confidence / 2, df) for df in dfs.ravel()]).reshape(dfs.shape)


def _efficient_weights(lattice: Lattice, index: str) -> Floats:
    """Weights (K, C) of an index that shares out the whole gain; ValueError for one that does not."""
    weights = index_weights(lattice, index)
    if np.abs(weights.sum(axis=0) - total_weights(lattice)).max() > _EXACT:
        raise ValueError(f"{index} values do not add up to the whole gain; use owen for the channel table")
    return weights
