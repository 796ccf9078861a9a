"""Seeds in many small blocks: block effects taken out, cluster-robust variance over blocks (CR2)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from ablate.attribution.estimation.functionals import DEFAULT_ORDER, TOLERANCE, model_warning
from ablate.attribution.lattice import Floats, Lattice, model_matrix


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BlockedFit:
    """Functionals estimated from blocked runs."""

    values: Floats  # (k,)
    covariance: Floats  # (k, k)
    df: int
    blocks: int
    reasons: tuple[str | None, ...]
    order: int | None
    residual_sd: float | None
    residual_df: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BlockedWeights:
    """Estimators of blocked runs as weights over runs (k, R); each sums to zero inside every block."""

    weights: Floats
    determined: np.ndarray  # (k,) bool
    order: int | None  # None: exact functional; blocks were adjusted by a model of DEFAULT_ORDER all the same
    residual_maker: Floats  # (R, R): runs minus fitted model and block effects
    residual_df: int


def blocked_weights(
    lattice: Lattice, cells: Sequence[int], clusters: Sequence[Hashable | None], functionals: Floats, order: int | None
) -> BlockedWeights:
    """Weights over runs. order None and every feasible cell present: the exact functional of block-adjusted runs.

    Block effects come from the least-squares fit of blocks and interactions up to `order` (default 2); the exact
    functional is then applied to the runs less their block effect, so the model enters only through the blocks.
    """
    observed = np.asarray(cells, dtype=np.int64)
    limit = DEFAULT_ORDER if order is None else order
    between = _block_means(clusters)
    within = np.eye(len(observed)) - between
    design = model_matrix(lattice, limit, observed)[:, 1:]
    centred = within @ design
    inverse = np.linalg.pinv(centred, rcond=1e-10)
    rank = int(np.linalg.matrix_rank(centred))
    wanted = functionals @ model_matrix(lattice, limit)[:, 1:]
    weights = wanted @ inverse
    determined = np.abs(weights @ centred - wanted).max(axis=1, initial=0.0) < TOLERANCE
    member = np.asarray(lattice.cells)[:, None] == observed[None, :]
    exact = order is None and rank == design.shape[1] and bool(member.any(axis=1).all())
    if exact:
        means = member / member.sum(axis=1, keepdims=True)
        weights = functionals @ means @ (within + between @ design @ inverse)
    return BlockedWeights(
        weights=weights,
        determined=determined,
        order=None if exact else limit,
        residual_maker=within - centred @ inverse,
        residual_df=round(float(np.trace(within))) - rank,
    )


def blocked_fit(
    lattice: Lattice, cells: Sequence[int], clusters: Sequence[Hashable | None], functionals: Floats, y: Floats,
    order: int | None = None,
) -> BlockedFit:  # fmt: skip
    """Estimates with the bias-reduced cluster-robust covariance (CR2; Bell and McCaffrey 2002).

    Degrees of freedom: blocks - 1 - components. A run without a block, or alone in it, carries no information.
    """
    plan = blocked_weights(lattice, cells, clusters, functionals, order)
    left = plan.residual_maker @ y
    scores = []
    for rows in _block_rows(clusters):
        adjust = _inverse_root(plan.residual_maker[np.ix_(rows, rows)])
        scores.append(plan.weights[:, rows] @ adjust @ left[rows])
    stacked = np.array(scores)
    df = len(scores) - 1 - len(lattice.components)
    assert df >= 1, "seed_layout sends tables with too few blocks elsewhere"
    missing = "the blocks of seeds leave this undetermined; put the variants it compares in common blocks"
    return BlockedFit(
        values=plan.weights @ y,
        covariance=stacked.T @ stacked,
        df=df,
        blocks=len(scores),
        reasons=tuple(None if ok else missing for ok in plan.determined),
        order=plan.order,
        residual_sd=float((left**2).sum() / plan.residual_df) ** 0.5 if plan.residual_df > 0 else None,
        residual_df=plan.residual_df,
        warnings=_warnings(lattice, cells, clusters, plan.order),
    )


def _warnings(
    lattice: Lattice, cells: Sequence[int], clusters: Sequence[Hashable | None], order: int | None
) -> tuple[str, ...]:
    limit = DEFAULT_ORDER if order is None else order
    out = [f"blocks of seeds are compared by a model with interactions of at most {limit} components"]
    if order is not None:
        out.append(model_warning(lattice, np.isin(lattice.cells, cells), order))
    alone = len(cells) - sum(map(len, _block_rows(clusters)))
    if alone:
        out.append(f"{alone} runs share their seed with no other run and add nothing to the comparison within blocks")
    return tuple(out)


def _block_rows(clusters: Sequence[Hashable | None]) -> list[list[int]]:
    """Rows of each block with at least two runs."""
    rows: dict[Hashable, list[int]] = {}
    for r, cluster in enumerate(clusters):
        rows.setdefault(("alone", r) if cluster is None else ("block", cluster), []).append(r)
    return [found for found in rows.values() if len(found) > 1]


def _block_means(clusters: Sequence[Hashable | None]) -> Floats:
    """(R, R) projection on block means; a run that is alone is its own block."""
    out = np.eye(len(clusters))
    for rows in _block_rows(clusters):
        out[np.ix_(rows, rows)] = 1.0 / len(rows)
    return out


def _inverse_root(matrix: Floats) -> Floats:
    """Symmetric pseudo-inverse square root."""
    values, vectors = np.linalg.eigh(matrix)
    kept = values > 1e-8
    return (vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T
