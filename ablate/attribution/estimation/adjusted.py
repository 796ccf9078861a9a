"""Effects at equal covariates: variants, seeds and covariates fitted together by least squares."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from ablate.attribution.estimation.functionals import DEFAULT_ORDER, TOLERANCE, model_warning
from ablate.attribution.lattice import Floats, Lattice, model_matrix


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AdjustedFit:
    """Estimators as weights over runs (k, R), and the residual mean square of the whole model."""

    weights: Floats
    reasons: tuple[str | None, ...]
    order: int | None  # None: nothing is assumed of interactions
    sd: float | None
    df: int
    warnings: tuple[str, ...]


def adjusted_fit(
    lattice: Lattice, cells: Sequence[int], clusters: Sequence[Hashable | None], covariates: Floats,
    functionals: Floats, y: Floats, order: int | None,
) -> AdjustedFit:  # fmt: skip
    """Functionals (k, C) of variants whose covariates (R, q) are held equal.

    A level per seed is fitted where seeds are shared. The model of variants has every interaction where every feasible
    variant ran and no order is asked, else those up to the order (default two).
    """
    present = np.isin(lattice.cells, list(cells))
    limit = None if present.all() and order is None else order or DEFAULT_ORDER
    shared = [seed for seed in dict.fromkeys(clusters) if seed is not None and clusters.count(seed) > 1]
    levels = np.array([[float(cluster == seed) for seed in shared] for cluster in clusters])
    nuisance = np.hstack([covariates, levels.reshape(len(y), len(shared))])
    design = np.hstack([model_matrix(lattice, limit, list(cells)), nuisance])
    wanted = np.hstack([functionals @ model_matrix(lattice, limit), np.zeros((len(functionals), nuisance.shape[1]))])
    weights = wanted @ np.linalg.pinv(design)
    determined = np.abs(weights @ design - wanted).max(axis=1, initial=0.0) < TOLERANCE
    left = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    df = len(y) - int(np.linalg.matrix_rank(design))
    missing = "variants and covariates of this table leave it undetermined; add runs, or leave a covariate out"
    warnings = ["covariates are taken out by a model that has the same curve and the same noise in all variants"]
    return AdjustedFit(
        weights=weights, reasons=tuple(None if ok else missing for ok in determined), order=limit,
        sd=float((left**2).sum() / df) ** 0.5 if df > 0 else None, df=df,
        warnings=tuple([model_warning(lattice, present, limit), *warnings] if limit else warnings),
    )  # fmt: skip
