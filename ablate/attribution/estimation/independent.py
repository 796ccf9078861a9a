"""Noise of runs that share no seed: each variant's own variance where it ran twice, else one for all of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ablate.attribution.lattice import Floats, Ints, Lattice, model_matrix

MIN_DF = 5  # of a residual without interactions of more than three components; below, two are assumed


@dataclass(frozen=True, kw_only=True, slots=True)
class Residual:
    """One noise for all runs; a warning says what it rests on."""

    sd: float | None
    df: int
    warning: str | None = None


def residual_of(lattice: Lattice, runs_cells: Sequence[int], y: Floats, order: int | None) -> Residual:
    """Noise of single runs: pure error where variants were repeated, else the residual of an order-limited model."""
    cells = np.asarray(runs_cells)
    repeats = len(cells) - len(set(runs_cells))
    if order is None and repeats >= len(set(runs_cells)):
        return _pure_error(cells, y)
    found = Residual(sd=None, df=0)
    for limit in [3, 2] if order is None else [order]:
        found = _fit_residual(model_matrix(lattice, limit, cells), y)
        if order is None and limit == 3 and repeats == 0 and found.df < MIN_DF:
            continue
        if found.df > repeats and order is None and limit < len(lattice.components):
            warning = (
                f"the noise is the residual of a model with interactions of at most {limit} components; "
                f"if larger ones exist, the intervals are wider than needed"
            )
            return replace(found, warning=warning)
        if found.df:
            return found
    return found


def _pure_error(cells: Ints, y: Floats) -> Residual:
    at, counts = np.unique(cells, return_inverse=True, return_counts=True)[1:]
    df = len(y) - len(counts)
    return Residual(sd=_root_mean(y - (np.bincount(at, y) / counts)[at], df), df=df)


def equal_spread_warning(lattice: Lattice, cells: Sequence[int]) -> str:
    """The sentence for intervals from one noise for all runs (R,)."""
    once = [cell for cell in dict.fromkeys(cells) if list(cells).count(cell) == 1]
    named = ", ".join(map(lattice.label, once[:3])) + (f" and {len(once) - 3} more" if len(once) > 3 else "")
    ran = f"{named} ran once" if once else "variants ran once"
    return f"{ran}: the intervals assume that all variants have the same noise, and are wrong where one is noisier"


def _fit_residual(design: Floats, y: Floats) -> Residual:
    coefficients, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    df = len(y) - int(rank)
    return Residual(sd=_root_mean(y - design @ coefficients, df), df=df)


def seed_residual(runs_cells: Sequence[int], clusters: Sequence[Hashable | None], y: Floats) -> Residual:
    """Residual of variant plus seed: what is left of one run when its seed's own level is taken out."""
    cells = {cell: i for i, cell in enumerate(dict.fromkeys(runs_cells))}
    seeds = {seed: i for i, seed in enumerate(dict.fromkeys(clusters))}
    table = np.zeros((len(cells), len(seeds)))
    table[[cells[c] for c in runs_cells], [seeds[s] for s in clusters]] = y
    left = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    df = (table.shape[0] - 1) * (table.shape[1] - 1)
    return Residual(sd=_root_mean(left.ravel(), df), df=df)


def _root_mean(residuals: Floats, df: int) -> float | None:
    return float((residuals**2).sum() / df) ** 0.5 if df > 0 else None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Spread:
    """Variance of single runs of each variant; NaN where it ran once."""

    at: Ints  # (R,) variant of each run
    variances: Floats  # (variants,)
    dfs: Floats  # (variants,)

    def used(self, weights: Floats) -> Ints:
        """Variants with weight, the one that counts positively first (so that Welch names on before off)."""
        sums = np.bincount(self.at, weights, minlength=len(self.dfs))
        kept = np.flatnonzero(np.abs(sums) > 1e-12)
        return kept[np.argsort(-sums[kept], kind="stable")]

    def covers(self, weights: Floats) -> bool:
        """True where every variant with weight ran twice."""
        return bool((self.dfs[self.at[np.abs(weights) > 1e-12]] > 0).all())

    def shares(self, weights: Floats) -> Floats:
        """What each variant adds to the variance of a weighted sum of runs."""
        squares: Floats = np.bincount(self.at, weights**2, minlength=len(self.dfs)).astype(np.float64)
        return squares * np.nan_to_num(self.variances)


def spread_of(cells: Sequence[int], y: Floats) -> Spread:
    """Variances of runs (R,) about the mean of their variant."""
    at, counts = np.unique(np.asarray(cells), return_inverse=True, return_counts=True)[1:]
    # Each variant less its first run: equal runs have a spread of exactly zero.
    left = y - np.array([y[np.argmax(at == cell)] for cell in range(len(counts))])[at]
    squares = np.bincount(at, (left - (np.bincount(at, left) / counts)[at]) ** 2)
    dfs = counts - 1.0
    return Spread(at=at, variances=np.where(dfs > 0, squares / np.maximum(dfs, 1), np.nan), dfs=np.maximum(dfs, 0))
