"""Linear functionals of the variants estimated from runs, each with the noise model its seeds allow.

Runs of one seed (same data order, same initial values) form a cluster. Every seed ran every needed variant: t over
seeds. No shared seed: each variant's own variance where it ran twice, residual mean square otherwise. Small blocks of
shared seeds: `blocked`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ablate.attribution.estimation.adjusted import adjusted_fit
from ablate.attribution.estimation.blocked import blocked_fit
from ablate.attribution.estimation.functionals import RunWeights, run_weights
from ablate.attribution.estimation.independent import (
    Residual,
    Spread,
    equal_spread_warning,
    residual_of,
    seed_residual,
    spread_of,
)
from ablate.attribution.lattice import Floats, Lattice

SATTERTHWAITE = "variance of each variant, Satterthwaite degrees of freedom"
ONE_SEED = "one seed for all variants hides how an effect changes from seed to seed, so no interval is given; run more"


@dataclass(frozen=True, kw_only=True, slots=True)
class Observations:
    """Finished runs. Clusters are equal where two runs may be paired (same seed, pairing hashes agree), None alone."""

    cells: tuple[int, ...]
    values: tuple[float, ...]
    clusters: tuple[Hashable | None, ...]
    resolution: float = 0.0  # step of the last digit that values were rounded to; 0: not rounded
    covariates: tuple[tuple[float, ...], ...] = ()  # per run, numbers whose linear influence is taken out

    def __post_init__(self) -> None:
        assert len(self.cells) == len(self.values) == len(self.clusters)
        assert all(np.isfinite(self.values))
        shared = [key for key in zip(self.cells, self.clusters, strict=True) if key[1] is not None]
        if len(shared) != len(set(shared)) and not self.covariates:
            twice = next(key for key in shared if shared.count(key) > 1)
            raise ValueError(f"cell {twice[0]:#b} has two runs of seed {twice[1]}; keep one")


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """One functional: its value, and its standard error where the runs give one (else `reason` says why not)."""

    name: str
    value: float | None
    standard_error: float | None = None
    df: float | None = None
    n: int = 0  # independent units: seeds, blocks of seeds, or runs
    runs_per_unit: float = 1.0
    df_per_unit: float = 1.0
    method: str = ""
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Estimates:
    """All functionals of one table, with the covariance needed for joint intervals and rank claims."""

    lines: dict[str, Estimate]
    covariance: Floats  # (k, k) in the order of `lines`; NaN where no joint noise model exists
    layout: str  # "complete", "independent", "blocked" or "mixed"
    order: int | None  # interactions above this order are assumed away; None: nothing assumed
    residual_sd: float | None = None  # of one run about its variant (and its seed, where seeds are shared)
    residual_df: int | None = None
    warnings: tuple[str, ...] = field(default=())

    def difference(self, a: str, b: str) -> Estimate:
        """Line a minus line b, for rank claims such as "A is worth more than B"."""
        names = list(self.lines)
        first, second = self.lines[a], self.lines[b]
        if first.value is None or second.value is None:
            return Estimate(name=f"{a} - {b}", value=None, reason=first.reason or second.reason)
        i, j = names.index(a), names.index(b)
        variance = self.covariance[i, i] + self.covariance[j, j] - 2 * self.covariance[i, j]
        line = replace(first, name=f"{a} - {b}", value=first.value - second.value)
        if not np.isfinite(variance) or first.df is None or second.df is None:
            return replace(line, standard_error=None, df=None, reason="the two effects have no joint noise model")
        return replace(line, standard_error=max(float(variance), 0.0) ** 0.5, df=min(first.df, second.df))


def estimate(
    lattice: Lattice,
    runs: Observations,
    functionals: Mapping[str, Floats],
    *,
    order: int | None = None,
) -> Estimates:
    """Estimate functionals (name -> (C,) weights over feasible cells that sum to 0) with their noise.

    order: None asks for no assumption where the table has every feasible variant, and for a model with interactions of
    two components elsewhere; a number asks for that model. What the table cannot give has value None and a reason.
    ValueError for an infeasible cell.
    """
    lattice.index(list(runs.cells))
    names = tuple(functionals)
    weights = np.array([functionals[name] for name in names])
    kind = seed_layout(lattice, runs)
    # Weights sum to zero, so any shift is free; this one makes identical records give exactly zero.
    y = np.asarray(runs.values) - runs.values[0]
    if kind == "blocked" and not runs.covariates:
        return _blocked_estimates(lattice, runs, names, weights, y, order)
    if runs.covariates:
        return _adjusted_estimates(lattice, runs, names, weights, y, order)
    plan = run_weights(lattice, runs.cells, weights, order)
    values = plan.weights @ y
    covariance = np.full((len(names), len(names)), np.nan)
    lines: dict[str, Estimate] = {}
    warnings = list(plan.warnings)
    residual = (
        residual_of(lattice, runs.cells, y, plan.order)
        if kind != "complete"
        else seed_residual(runs.cells, runs.clusters, y)
    )
    spread = spread_of(runs.cells, y)
    sharing: dict[frozenset[Hashable], list[int]] = {}
    everyone: frozenset[Hashable] = frozenset(runs.clusters)
    for k, name in enumerate(names):
        if plan.reasons[k] is not None:
            lines[name] = Estimate(name=name, value=None, reason=plan.reasons[k])
            continue
        seeds, reason = everyone, None
        if kind != "complete":
            seeds, reason = _shared_seeds(lattice, runs, plan.weights[k])
        if reason is not None:
            lines[name] = Estimate(name=name, value=float(values[k]), reason=reason)
        elif seeds:
            sharing.setdefault(seeds, []).append(k)
        else:
            lines[name] = _independent_line(name, runs, plan.weights[k], y, spread, residual)
    for seeds, members in sharing.items():
        for k, line in _seed_lines(runs, plan, y, seeds, members, covariance).items():
            lines[names[k]] = replace(line, name=names[k])
    lines, equal = _without_zero_width(lines, dict(zip(names, plan.weights, strict=True)), runs)
    _fill_independent_covariance(lines, names, plan.weights, spread, residual, covariance)
    warnings += equal
    if any(line.method.startswith("residual") for line in lines.values()):
        warnings += [residual.warning] if residual.warning else []
        warnings.append(equal_spread_warning(lattice, runs.cells))
    return Estimates(
        lines={name: lines[name] for name in names},
        covariance=covariance,
        layout=kind,
        order=plan.order,
        residual_sd=residual.sd,
        residual_df=residual.df or None,
        warnings=tuple(warnings),
    )


def seed_layout(lattice: Lattice, runs: Observations) -> str:
    """How seeds are spread over variants.

    complete: every seed ran every variant of the table. independent: no seed ran two. blocked: small blocks, enough of
    them for cluster-robust intervals (at least components + 2). mixed: anything else, such as a run that is missing.
    """
    cells = set(runs.cells)
    members: dict[Hashable, set[int]] = {}
    for cell, cluster in zip(runs.cells, runs.clusters, strict=True):
        if cluster is not None:
            members.setdefault(cluster, set()).add(cell)
    if all(len(found) == 1 for found in members.values()) and len(cells) > 1:
        return "independent"
    if None not in runs.clusters and all(found == cells for found in members.values()):
        return "complete"
    shared = sum(len(found) > 1 for found in members.values())
    if any(found == cells for found in members.values()) or shared - 1 - len(lattice.components) < 1:
        return "mixed"
    return "blocked"


def _shared_seeds(lattice: Lattice, runs: Observations, weights: Floats) -> tuple[frozenset[Hashable], str | None]:
    """Seeds common to all runs a functional uses; empty where none is shared; a sentence where some are missing."""
    used = np.flatnonzero(np.abs(weights) > 1e-12)
    by_cell: dict[int, set[Hashable]] = {}
    singles = False
    for r in used:
        cluster = runs.clusters[r]
        singles |= cluster is None
        by_cell.setdefault(runs.cells[r], set()).add(cluster)
    groups = list(by_cell.values())
    everywhere = frozenset.intersection(*map(frozenset, groups)) - {None}
    anywhere = frozenset.union(*map(frozenset, groups)) - {None}
    if not singles and everywhere == anywhere:
        return everywhere, None
    if sum(len(group - {None}) for group in groups) == len(anywhere):
        return frozenset(), None
    for cell, group in by_cell.items():
        lacking = sorted(map(str, anywhere - group))
        if lacking:
            reason = (
                f"the interval is refused because seed {lacking[0]} has no run of {lattice.label(cell)} "
                f"although other variants ran with it; run it, or use the same seeds everywhere"
            )
            return frozenset(), reason
    return frozenset(), "the interval is refused because some runs share a seed and others have none"


def _seed_lines(
    runs: Observations, plan: RunWeights, y: Floats, seeds: frozenset[Hashable], members: Sequence[int],
    covariance: Floats,
) -> dict[int, Estimate]:  # fmt: skip
    """t over seeds: each seed gives every functional once. Fills the joint covariance of these functionals."""
    order = sorted(seeds, key=str)
    inside = np.array([[cluster == seed for cluster in runs.clusters] for seed in order], dtype=float)
    scores = len(order) * (plan.weights[list(members)] * y) @ inside.T
    used = np.flatnonzero((np.abs(plan.weights[list(members)]) > 1e-12).any(axis=0))
    cells = len({runs.cells[r] for r in used})
    out = {}
    n = len(order)
    if n > 1:
        # Deviations from the first seed: equal seeds give a spread of exactly zero.
        spread = np.atleast_2d(np.cov(scores - scores[:, :1])) / n
        covariance[np.ix_(members, members)] = spread
    for at, k in enumerate(members):
        line = Estimate(
            name="", value=float(scores[at].mean()), n=n, runs_per_unit=cells, method=f"paired t over {n} seeds"
        )
        if n > 1:
            out[k] = replace(line, standard_error=float(spread[at, at]) ** 0.5, df=n - 1.0)
        else:
            out[k] = replace(line, reason=ONE_SEED, method="one seed")
    return out


def _independent_line(
    name: str, runs: Observations, weights: Floats, y: Floats, spread: Spread, residual: Residual
) -> Estimate:
    """Variance of each variant where all that are used ran twice, else the residual mean square of all."""
    value = float(weights @ y)
    n = len(runs.cells)
    if spread.covers(weights):
        shares = spread.shares(weights)
        error = float(shares.sum()) ** 0.5
        # Satterthwaite (1946): df of a sum of independent variances. Without noise every df gives the same interval.
        used = shares > 0
        parts = float((shares[used] ** 2 / spread.dfs[used]).sum())
        df = float(shares.sum() ** 2 / parts) if error > 0 else float(spread.dfs.sum())
        counts = spread.dfs[spread.used(weights)].astype(int) + 1
        method = f"Welch t, {' and '.join(map(str, counts))} runs" if len(counts) == 2 else SATTERTHWAITE
        return Estimate(name=name, value=value, standard_error=error, df=df, n=int(counts.sum()), method=method)
    if residual.sd is None:
        return Estimate(
            name=name, value=value, n=n,
            reason="no variant ran twice and nothing is left over for the noise, so no interval is given; add seeds",
        )  # fmt: skip
    return Estimate(
        name=name, value=value, standard_error=float(residual.sd * (weights @ weights) ** 0.5), df=float(residual.df),
        n=n, method=f"residual mean square, {residual.df} degrees of freedom",
    )  # fmt: skip


def _fill_independent_covariance(
    lines: Mapping[str, Estimate], names: Sequence[str], weights: Floats, spread: Spread, residual: Residual,
    covariance: Floats,
) -> None:  # fmt: skip
    """Joint covariance of functionals that share a noise model, and the variances of all others."""
    pooled = [k for k, name in enumerate(names) if lines[name].method.startswith("residual")]
    if pooled and residual.sd is not None:
        covariance[np.ix_(pooled, pooled)] = residual.sd**2 * weights[pooled] @ weights[pooled].T
    own = [k for k, name in enumerate(names) if lines[name].method.startswith(("Welch", SATTERTHWAITE))]
    each = np.nan_to_num(spread.variances)[spread.at]
    covariance[np.ix_(own, own)] = (weights[own] * each) @ weights[own].T
    for k, name in enumerate(names):
        error = lines[name].standard_error
        if error is not None:
            covariance[k, k] = error**2


def _without_zero_width(
    lines: Mapping[str, Estimate], weights: Mapping[str, Floats], runs: Observations
) -> tuple[dict[str, Estimate], list[str]]:
    """Lines whose standard error is at least that of rounding, and a word where differences agree to the last digit."""
    out = dict(lines)
    agree = False
    bits = 4 * np.finfo(float).eps * max(map(abs, runs.values))
    for name, line in lines.items():
        size = float(weights[name] @ weights[name] / 12) ** 0.5  # of an error uniform within half a step, over all runs
        if line.standard_error is not None and line.standard_error <= size * max(runs.resolution, bits):
            agree = True
            out[name] = replace(line, standard_error=max(line.standard_error, size * runs.resolution))
    word = (
        f"differences agree to the last digit: the intervals show rounding (to {runs.resolution:g}) and no spread, so "
        f"give all digits, and see whether runs are copies of one another"
    )
    return out, [word] if agree else []


def _blocked_estimates(
    lattice: Lattice, runs: Observations, names: Sequence[str], weights: Floats, y: Floats, order: int | None
) -> Estimates:
    fit = blocked_fit(lattice, runs.cells, runs.clusters, weights, y, order)
    blocks = fit.blocks
    lines = {}
    for k, name in enumerate(names):
        if fit.reasons[k] is not None:
            lines[name] = Estimate(name=name, value=None, reason=fit.reasons[k])
        else:
            lines[name] = Estimate(
                name=name, value=float(fit.values[k]), standard_error=max(float(fit.covariance[k, k]), 0.0) ** 0.5,
                df=float(fit.df), n=blocks, runs_per_unit=len(runs.cells) / blocks,
                method=f"cluster-robust t over {blocks} blocks of seeds",
            )  # fmt: skip
    return Estimates(
        lines=lines, covariance=fit.covariance, layout="blocked", order=fit.order, residual_sd=fit.residual_sd,
        residual_df=fit.residual_df, warnings=fit.warnings,
    )  # fmt: skip


def _adjusted_estimates(
    lattice: Lattice, runs: Observations, names: Sequence[str], weights: Floats, y: Floats, order: int | None
) -> Estimates:
    fit = adjusted_fit(lattice, runs.cells, runs.clusters, np.array(runs.covariates), weights, y, order)
    lines = {}
    for k, name in enumerate(names):
        line = Estimate(name=name, value=float(fit.weights[k] @ y), n=len(y))
        if fit.reasons[k] is not None:
            lines[name] = replace(line, value=None, reason=fit.reasons[k])
        elif fit.sd is None:
            lines[name] = replace(line, reason="nothing is left over for the noise, so no interval is given; add runs")
        else:
            error = fit.sd * float(fit.weights[k] @ fit.weights[k]) ** 0.5
            method = f"residual mean square beside covariates, {fit.df} degrees of freedom"
            lines[name] = replace(line, standard_error=error, df=float(fit.df), method=method)
    rounded, equal = _without_zero_width(lines, dict(zip(names, fit.weights, strict=True)), runs)
    covariance = np.nan if fit.sd is None else fit.sd**2 * fit.weights @ fit.weights.T
    return Estimates(
        lines=rounded, covariance=covariance * np.ones((len(names), len(names))), layout="adjusted", order=fit.order,
        residual_sd=fit.sd, residual_df=fit.df or None, warnings=(*fit.warnings, *equal),
    )  # fmt: skip
