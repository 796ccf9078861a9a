"""Are the intervals honest? Designs and their estimators as matrices, run on thousands of simulated studies at once.

Every estimate here is linear in the runs and every variance a sum of squares of linear maps of the runs, so a study is
a matrix product. The matrices come from the estimators that real tables go through; a test holds the two together.
Shape letters: S simulated studies, R runs, C feasible cells, k effects, J squares in a variance.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from ablate.attribution.estimation.blocked import blocked_weights
from ablate.attribution.estimation.functionals import run_weights
from ablate.attribution.lattice import Floats, Ints, Lattice, model_matrix
from ablate.attribution.verdicts import t_quantile


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StudyPlan:
    """A design with its estimator: effects = weights @ runs, variance of effect k = |spread[k] @ runs|^2."""

    lattice: Lattice
    cells: tuple[int, ...]  # (R,)
    weights: Floats  # (k, R)
    spread: Floats  # (k, J, R)
    df: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcome:
    """What happened in the simulated studies."""

    errors: Floats  # (S, k) estimate minus truth
    standard_errors: Floats  # (S, k)
    df: float

    def covered(self, critical: float) -> Floats:
        """(S, k) whether |error| is within `critical` standard errors; a bool array."""
        return np.asarray(np.abs(self.errors) <= critical * self.standard_errors)

    def coverage(self, confidence: float = 0.95) -> Floats:
        """(k,) share of studies whose t-interval holds the truth."""
        return np.asarray(self.covered(t_quantile(0.5 + confidence / 2, self.df)).mean(axis=0))

    def half_width(self, confidence: float = 0.95) -> float:
        """Mean half-width of the t-intervals over studies and effects."""
        return float(t_quantile(0.5 + confidence / 2, self.df) * self.standard_errors.mean())

    def within(self, tolerance: float) -> tuple[float, float]:
        """P(|error| <= tolerance) of the worst effect, and of all effects together."""
        inside = np.abs(self.errors) <= tolerance
        return float(inside.mean(axis=0).min()), float(inside.all(axis=1).mean())

    def rmse(self) -> float:
        """Root mean square error over studies and effects."""
        return float(np.sqrt((self.errors**2).mean()))


def independent_plan(
    lattice: Lattice,
    cells: Sequence[int],
    functionals: Floats,
    *,
    order: int | None = None,
    residual_order: int | None = None,
) -> StudyPlan:
    """Fresh seed in every run: noise from the residual mean square of a model of `residual_order`.

    residual_order defaults to `order`, and to 3 for the exact functional, as for real tables. With residual_order=0 the
    noise is the pure error of repeated variants. ValueError where nothing is left over for the noise.
    """
    plan = run_weights(lattice, cells, functionals, order)
    if any(plan.reasons):
        raise ValueError(f"this design does not give every effect: {next(r for r in plan.reasons if r)}")
    limit = order if residual_order is None else residual_order
    observed = np.asarray(cells)
    pure = (observed[:, None] == np.unique(observed)[None, :]).astype(np.float64)
    fitted = pure if limit == 0 else model_matrix(lattice, 3 if limit is None else limit, cells)
    basis, sizes, _ = np.linalg.svd(fitted)
    left = basis[:, int((sizes > 1e-9 * sizes[0]).sum()) :].T
    if not len(left):
        raise ValueError(f"{len(cells)} runs leave nothing over for the noise; repeat some variants")
    lengths = np.linalg.norm(plan.weights, axis=1)
    spread = lengths[:, None, None] * left[None] / len(left) ** 0.5
    return StudyPlan(lattice=lattice, cells=tuple(cells), weights=plan.weights, spread=spread, df=float(len(left)))


def blocked_plan(
    lattice: Lattice,
    cells: Sequence[int],
    clusters: Sequence[Hashable],
    functionals: Floats,
    *,
    order: int | None = None,
) -> StudyPlan:
    """Blocks that share a seed: block effects taken out, CR2 variance over blocks, df = blocks - 1 - components."""
    plan = blocked_weights(lattice, cells, clusters, functionals, order)
    labels = list(dict.fromkeys(clusters))
    maps = []
    for label in labels:
        rows = [r for r, cluster in enumerate(clusters) if cluster == label]
        values, vectors = np.linalg.eigh(plan.residual_maker[np.ix_(rows, rows)])
        kept = values > 1e-8
        adjust = (vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T
        maps.append(plan.weights[:, rows] @ adjust @ plan.residual_maker[rows])
    return StudyPlan(
        lattice=lattice,
        cells=tuple(cells),
        weights=plan.weights,
        spread=np.array(maps).transpose(1, 0, 2),
        df=float(len(labels) - 1 - len(lattice.components)),
    )


def simulate(plan: StudyPlan, truths: Floats, noise: Floats, targets: Floats) -> Outcome:
    """Run studies. truths: (S, C) game values; noise: (S, R) of the runs; targets: (k, C) weights of true effects."""
    where: Ints = plan.lattice.index(list(plan.cells))
    runs = truths[:, where] + noise
    k, j, r = plan.spread.shape
    squares = (runs @ plan.spread.reshape(k * j, r).T).reshape(len(runs), k, j) ** 2
    return Outcome(
        errors=runs @ plan.weights.T - truths @ targets.T,
        standard_errors=np.sqrt(squares.sum(axis=2)),
        df=plan.df,
    )
