"""From weights over feasible variants to weights over runs: exact where possible, else by a stated model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ablate.attribution.lattice import Floats, Lattice, model_matrix, model_terms

DEFAULT_ORDER = 2  # interactions of two components, when a table lacks variants
TOLERANCE = 1e-8

Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunWeights:
    """Estimators as weights over runs (k, R); rows with a reason are not estimable and hold zeros."""

    weights: Floats
    exact: tuple[bool, ...]  # True where nothing is assumed about interactions
    reasons: tuple[str | None, ...]
    order: int | None  # order of the model behind all rows; None where none or only some rows use one
    warnings: tuple[str, ...]


def run_weights(lattice: Lattice, cells: Sequence[int], functionals: Floats, order: int | None = None) -> RunWeights:
    """Weights over runs (k, R) for functionals (k, C).

    Every feasible cell present and no order asked: means of the cells, nothing assumed. Model of the order estimable
    with a cell to spare: least squares for all rows, so that they stay consistent. Otherwise row by row: exact where
    the row's cells are present, by the model where it determines the row, else a reason.
    """
    observed = np.asarray(cells, dtype=np.int64)
    at = lattice.index(observed)
    counts = np.bincount(at, minlength=len(lattice.cells))
    present: Bools = counts > 0
    direct = functionals[:, at] / counts[at]
    if present.all() and order is None:
        return RunWeights(weights=direct, exact=(True,) * len(functionals),
                          reasons=(None,) * len(functionals), order=None, warnings=())  # fmt: skip
    limit = DEFAULT_ORDER if order is None else order
    design = model_matrix(lattice, limit, observed)
    wanted = functionals @ model_matrix(lattice, limit)
    fitted = wanted @ np.linalg.pinv(design)
    determined: Bools = np.asarray(np.abs(fitted @ design - wanted).max(axis=1, initial=0.0) < TOLERANCE)
    spare = int(present.sum()) - len(model_terms(lattice, limit))
    if determined.all() and (spare > 0 or order is not None) and np.linalg.matrix_rank(design) == design.shape[1]:
        return RunWeights(weights=fitted, exact=(False,) * len(functionals), reasons=(None,) * len(functionals),
                          order=limit, warnings=(model_warning(lattice, present, limit),))  # fmt: skip
    return _row_by_row(lattice, functionals, present, direct, fitted, determined, limit)


def _row_by_row(
    lattice: Lattice, functionals: Floats, present: Bools, direct: Floats, fitted: Floats, determined: Bools, limit: int
) -> RunWeights:
    weights = np.zeros_like(direct)
    exact: list[bool] = []
    reasons: list[str | None] = []
    modelled = False
    for k, row in enumerate(functionals):
        lacking = np.flatnonzero((np.abs(row) > 1e-12) & ~present)
        exact.append(not len(lacking))
        reasons.append(None)
        if not len(lacking):
            weights[k] = direct[k]
        elif determined[k]:
            weights[k] = fitted[k]
            modelled = True
        else:
            names = ", ".join(lattice.label(lattice.cells[c]) for c in lacking[:3])
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            reasons[k] = f"the table has no run of {names}{more}, which this needs"
    warnings = (model_warning(lattice, present, limit),) if modelled else ()
    return RunWeights(weights=weights, exact=tuple(exact), reasons=tuple(reasons), order=None, warnings=warnings)


def model_warning(lattice: Lattice, present: Bools, limit: int) -> str:
    """Sentence that names the assumption and the variants without a run, which make it necessary."""
    lacking = [lattice.label(cell) for cell, there in zip(lattice.cells, present.tolist(), strict=True) if not there]
    if not lacking:
        return f"values assume that interactions of more than {limit} components are zero, as asked"
    named = ", ".join(lacking) if len(lacking) <= 4 else f"{', '.join(lacking[:3])} and {len(lacking) - 3} more"
    return (
        f"no run of {named} (of {len(present)} feasible variants): values that need them assume that interactions of "
        f"more than {limit} components are zero"
    )
