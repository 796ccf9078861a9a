"""Learning-rate fairness: screen, predict each variant's optimum, charge what the prediction does not know.

Two stages. Screening: a few variants, each at three learning rates (log2 units around a shared centre). A response
surface (level per variant, slope linear in the components, curvature that may differ with `moe`) predicts the optimum
of every feasible variant, where the design proper then runs once. Missing the optimum by d octaves costs
curvature * d^2, so the uncertainty of the prediction widens the intervals of the effects but moves no estimate.
No variant's best trial is reported, because the best of several wins by luck alone (Dodge et al., arXiv:1909.03004).
Shape letters: C feasible cells, K components, R runs, P terms.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ablate.attribution.design.exchange import exchange
from ablate.attribution.lattice import Floats, Ints, Lattice, model_matrix
from ablate.attribution.verdicts import t_quantile

HALF_RANGE = 1.5  # octaves on either side of the shared centre
# Beyond this the prediction extrapolates the parabola by more than an octave; the optimum is held there and flagged.
REACH = HALF_RANGE + 1.0
_EXCHANGE_STARTS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One run of a learning-rate search."""

    cell: int  # the variant, a bitmask of its lattice
    log2_lr: float  # octaves from the shared centre
    seed: int
    loss: float  # decayed held-out loss, nats per token


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseSurface:
    """loss = level(cell) + slope(cell) * l + curvature(cell) * l^2, fitted to screening trials."""

    lattice: Lattice
    curvature_by: tuple[str, ...]  # components whose curvature may differ
    coefficients: Floats  # (1 + K slope, 1 + len(curvature_by) curvature)
    covariance: Floats  # of the coefficients; misfit of the surface is in it through residual_sd
    residual_sd: float
    df: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningRates:
    """Predicted optimum of every feasible variant, in the order of `Lattice.cells`."""

    log2_lr: Floats  # (C,) octaves from the shared centre
    covariance: Floats  # (C, C)
    curvature: Floats  # (C,) nats per octave^2
    clipped: tuple[str, ...]  # variants whose optimum lies beyond what may be extrapolated


@dataclass(frozen=True, kw_only=True, slots=True)
class TunedEffects:
    """Effects on the tuned loss: the estimates of the design, with intervals that include the learning-rate error."""

    estimate: Floats  # (K,)
    low: Floats
    high: Floats
    standard_error: Floats  # (K,) with the learning-rate error in it
    learning_rate_share: Floats  # (K,) share of the variance that is owed to missed optima


def screening_design(
    lattice: Lattice, *, cells: int | None = None, half_range: float = HALF_RANGE, rng: np.random.Generator
) -> tuple[tuple[int, float], ...]:
    """(cell, log2 learning rate) of every screening run: D-optimal cells, each at -half_range, 0 and +half_range.

    cells: how many variants to screen, default K + 2; every component's slope needs at least K + 1. The three rates of
    a variant should share a seed: the level of the variant then absorbs it.
    """
    if not half_range > 0:
        raise ValueError(f"the half range is in octaves and must be positive, got {half_range}")
    chosen = screened_cells(lattice, lattice.cells, cells=cells, rng=rng)
    return tuple((cell, rate) for cell in chosen for rate in (-half_range, 0.0, half_range))


def screened_cells(
    lattice: Lattice, among: Sequence[int], *, cells: int | None = None, rng: np.random.Generator
) -> tuple[int, ...]:
    """The D-optimal cells to screen among those given: K + 2 by default, or as many as there are if these are fewer."""
    fewest = len(lattice.components) + 1
    wanted = min(fewest + 1, len(among)) if cells is None else cells
    if not fewest <= wanted <= len(among):
        raise ValueError(
            f"{wanted} variants cannot be screened: it takes at least {fewest} to see every component's slope, and "
            f"there are {len(among)} variants"
        )
    if wanted == len(among):
        return tuple(among)
    return tuple(among[i] for i in _d_optimal(model_matrix(lattice, 1, among), wanted, rng))


def fit_surface(
    lattice: Lattice, trials: Sequence[Trial], *, curvature_by: Sequence[str] | None = None
) -> ResponseSurface:
    """Least-squares response surface; interactions of the levels cannot disturb it, every variant has its own level.

    curvature_by: components that may change the curvature, default `moe` where the lattice has it. Raises ValueError
    for a diverged trial and for a design that does not determine the surface or leaves no residual.
    """
    by = tuple(c for c in ("moe",) if c in lattice.components) if curvature_by is None else tuple(curvature_by)
    for trial in trials:
        if not (math.isfinite(trial.loss) and math.isfinite(trial.log2_lr)):
            raise ValueError(
                f"the trial of {lattice.label(trial.cell)} at {trial.log2_lr:+g} octaves, seed {trial.seed}, has loss "
                f"{trial.loss}; repeat it once on a new seed, or narrow the range for all variants alike"
            )
    x = surface_matrix(lattice, [t.cell for t in trials], [t.log2_lr for t in trials], by)
    terms = 1 + len(lattice.components) + 1 + len(by)
    rank = int(np.linalg.matrix_rank(x))
    if rank < x.shape[1] or len(trials) <= rank:
        raise ValueError(
            f"{len(trials)} trials do not determine a surface of {x.shape[1]} terms with an error; screen more "
            "variants, each at three learning rates"
        )
    y = np.array([t.loss for t in trials])
    inverse = np.linalg.pinv(x)
    beta = inverse @ y
    residual = y - x @ beta
    df = len(trials) - rank
    variance = float(residual @ residual) / df
    return ResponseSurface(
        lattice=lattice,
        curvature_by=by,
        coefficients=beta[-terms:],
        covariance=variance * (inverse @ inverse.T)[-terms:, -terms:],
        residual_sd=math.sqrt(variance),
        df=df,
    )


def surface_matrix(lattice: Lattice, cells: Sequence[int], log2_lr: Sequence[float], by: Sequence[str]) -> Floats:
    """(R, P) columns: one level per variant that occurs, 1 + K slopes, 1 + len(by) curvatures."""
    present = sorted(set(cells))
    level = (np.array(cells)[:, None] == np.array(present)[None, :]).astype(np.float64)
    rate = np.array(log2_lr, dtype=np.float64)[:, None]
    slope, curvature = _slope_and_curvature_terms(lattice, np.array(cells, dtype=np.int64), by)
    return np.hstack([level, rate * slope, rate**2 * curvature])


def predict_optima(surface: ResponseSurface, *, low: float = -REACH, high: float = REACH) -> LearningRates:
    """Minimum of the parabola of every feasible variant, with delta-method covariance.

    low, high: octaves from the shared centre; an optimum beyond them is held there, and the variant named. Raises
    ValueError where a parabola has no minimum: the range was too narrow for the noise.
    """
    lattice = surface.lattice
    cells = np.array(lattice.cells, dtype=np.int64)
    of_slope, of_curvature = _slope_and_curvature_terms(lattice, cells, surface.curvature_by)
    split = of_slope.shape[1]
    slope, curvature = of_slope @ surface.coefficients[:split], of_curvature @ surface.coefficients[split:]
    if curvature.min() <= 0:
        raise ValueError(
            f"the loss of {lattice.label(int(cells[curvature.argmin()]))} has no minimum over the learning rates that "
            "were screened; widen the range for all variants, or screen more of them"
        )
    best = -slope / (2.0 * curvature)
    jacobian = np.hstack([-of_slope / (2.0 * curvature)[:, None], -(best / curvature)[:, None] * of_curvature])
    beyond = np.flatnonzero((best < low) | (best > high))
    return LearningRates(
        log2_lr=np.clip(best, low, high),
        covariance=jacobian @ surface.covariance @ jacobian.T,
        curvature=curvature,
        clipped=tuple(lattice.label(int(cells[i])) for i in beyond),
    )


def missed_optimum_variance(rates: LearningRates, weights: Floats) -> Floats:
    """Mean square of what missed optima add to effects `weights` (K, C) @ losses: (K,), nats^2.

    With misses d ~ N(0, V), the excess losses c d^2 have mean c diag(V) and covariance 2 c c' V^2 (elementwise). The
    mean is charged as an error too and not subtracted: V is inflated by misfit, and subtracting it would overcorrect.
    """
    mean = weights @ (rates.curvature * np.diag(rates.covariance))
    covariance = 2.0 * np.outer(rates.curvature, rates.curvature) * rates.covariance**2
    return np.asarray(mean**2 + np.einsum("kc,cd,kd->k", weights, covariance, weights))


def tuned_effects(
    estimate: Floats,
    standard_error: Floats,
    *,
    df: float,
    rates: LearningRates,
    weights: Floats,
    nats_per_unit: float = 1.0,
    confidence: float = 0.95,
) -> TunedEffects:
    """Intervals of effects measured at predicted optima: the design's t-interval, widened by missed optima.

    estimate, standard_error: (K,) from the design; weights: (K, C) of the effect over feasible cells. nats_per_unit: 1
    for effects in nats, the slope of the loss (`loss_slope`, nats per e-fold) for effects in log cost.
    """
    if not nats_per_unit > 0:
        raise ValueError(f"nats per unit of the effect must be positive, got {nats_per_unit}; it is 1 for nats")
    extra = missed_optimum_variance(rates, weights) / nats_per_unit**2
    variance = np.asarray(standard_error) ** 2 + extra
    half = t_quantile(0.5 + confidence / 2.0, df) * np.sqrt(variance)
    return TunedEffects(
        estimate=np.asarray(estimate),
        low=estimate - half,
        high=estimate + half,
        standard_error=np.sqrt(variance),
        learning_rate_share=extra / np.where(variance > 0, variance, 1.0),
    )


def _slope_and_curvature_terms(lattice: Lattice, cells: Ints, by: Sequence[str]) -> tuple[Floats, Floats]:
    """(R, 1 + K) and (R, 1 + len(by)): a constant and the level of each component."""
    on = levels(lattice, cells)
    constant = np.ones((len(cells), 1))
    for name in by:
        lattice.mask([name])
    return np.hstack([constant, on]), np.hstack([constant, on[:, [lattice.components.index(c) for c in by]]])


def levels(lattice: Lattice, cells: Sequence[int] | Ints | None = None) -> Floats:
    """(cells, K) matrix of 0 and 1: which components are on. Default: all feasible cells."""
    masks = np.asarray(lattice.cells if cells is None else cells, dtype=np.int64)
    return (masks[:, None] >> np.arange(len(lattice.components))[None, :] & 1).astype(np.float64)


def _d_optimal(candidates: Floats, size: int, rng: np.random.Generator) -> list[int]:
    """Positions of different candidates (C, P) with the largest log-determinant that exchange finds from its starts."""
    # One row fewer than the smallest design is singular; this ridge ranks the candidates there and nowhere else.
    ridge = 1e-6 * np.eye(candidates.shape[1])

    def growth(chosen: Ints, at: int) -> Floats:
        """Logarithm of the factor by which each candidate multiplies the determinant of the other rows, (C,)."""
        others = np.delete(chosen, at)
        inverse = np.linalg.inv(candidates[others].T @ candidates[others] + ridge)
        out = np.log(np.einsum("cp,pq,cq->c", candidates, inverse, candidates))
        out[others] = -math.inf
        return np.asarray(out)

    best, best_value = np.arange(size), -math.inf
    for _ in range(_EXCHANGE_STARTS):
        rows = exchange(rng.choice(len(candidates), size, replace=False), growth)
        value = float(np.linalg.slogdet(candidates[rows].T @ candidates[rows] + ridge)[1])
        if value > best_value:
            best, best_value = rows, value
    return sorted(best.tolist())
