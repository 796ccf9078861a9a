"""How many seeds or runs an asked precision takes: the cheapest design, or a refusal that says the number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.special import chdtri, fdtri

from ablate.attribution.design.designs import Design
from ablate.attribution.design.exchange import BLOCK_SIZE, EXTRA_RUNS, lattice_design, optimal
from ablate.attribution.lattice import Lattice, model_terms
from ablate.attribution.verdicts import check_confidence, t_quantile

MAX_PLANNED = 4000  # larger studies are not planned run by run
MAX_RUNS = 100_000
ASSURANCE = 0.8  # chance that the planned seeds reach the precision, over the noise of old and new runs


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """What is known of the noise beforehand: an sd with its degrees of freedom (infinite: known exactly)."""

    sd: float
    df: float
    origin: str  # in words


def seeds_for(precision: float, noise: Noise, *, confidence: float = 0.95, assurance: float = ASSURANCE) -> int | None:
    """Pairs of seeds whose t-interval has at most this half-width with a chance of `assurance`; None if too many.

    noise: of the difference of one pair. The variance s^2 that n new pairs will show over the known one is distributed
    as F(n - 1, df), so t * sd * sqrt(F quantile / n) is the half-width that they stay below: the less is known of the
    noise, the more seeds.
    """
    check_confidence(confidence)
    if not (np.isfinite(precision) and precision > 0 and np.isfinite(noise.sd) and noise.sd >= 0 and noise.df > 0):
        raise ValueError(f"precision {precision} and sd {noise.sd} with {noise.df} degrees of freedom were given")

    def reaches(n: int) -> bool:
        df = n - 1
        ratio = chdtri(df, 1 - assurance) / df if np.isinf(noise.df) else fdtri(df, noise.df, assurance)
        return bool(t_quantile(0.5 + confidence / 2, df) * noise.sd * (ratio / n) ** 0.5 <= precision)

    enough = 2
    while not reaches(enough):
        enough *= 2
        if enough > 2 * MAX_RUNS:
            return None
    low = enough // 2 if enough > 2 else 1
    while enough - low > 1:
        middle = (low + enough) // 2
        low, enough = (low, middle) if reaches(middle) else (middle, enough)
    return enough


def plan(
    lattice: Lattice,
    *,
    precision: float,
    sigma: float,
    order: int | None = None,
    budget: int | None = None,
    confidence: float = 0.95,
    correlation: float = 0.0,
    seed: int = 0,
) -> Design:
    """The design with fewest runs whose Owen-precedence intervals all have half-width <= precision.

    sigma: sd of one variant's metric over seeds. correlation: between variants that share a seed (pairing leaves
    sigma * sqrt(1 - correlation)); 0 plans a seed of its own for every run. order: interactions above it are assumed
    away; None assumes nothing. ValueError where precision needs more runs than the budget; it says how many.
    """
    check_confidence(confidence)
    if not (np.isfinite(precision) and precision > 0 and np.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"precision {precision} and sigma {sigma} were given; both are finite, the first above 0")
    if not 0 <= correlation < 1:
        raise ValueError(f"correlation {correlation} was given; it lies between 0 and below 1")
    paired_sigma = sigma * (1 - correlation) ** 0.5
    found: list[Design] = []
    for build, noise in _families(lattice, order, sigma, paired_sigma, seed):
        design = _fewest(build, partial(_reaches, precision, noise, confidence))
        if design is not None:
            found.append(design)
    if not found:
        raise ValueError(
            f"no design of about {MAX_PLANNED} runs reaches {precision:g} with sigma {sigma:g}; reduce the noise"
        )
    best = min(found, key=lambda d: len(d.runs))
    if budget is not None and len(best.runs) > budget:
        raise ValueError(
            f"a budget of {budget} runs cannot reach a half-width of {precision:g} with sigma {sigma:g}; "
            f"{len(best.runs)} runs would ({best.name} design, {best.layout} seeds)"
        )
    return best


def _reaches(precision: float, noise: float, confidence: float, design: Design) -> bool:
    return design.half_width(noise, confidence) <= precision


def _families(
    lattice: Lattice, order: int | None, sigma: float, paired_sigma: float, seed: int
) -> Iterator[tuple[Callable[[int], Design | None], float]]:
    """Designs that grow with one number, each with the noise sd its runs will have."""
    cells = len(lattice.cells)

    def complete(n: int) -> Design | None:
        seeds = n + 1
        return lattice_design(lattice, replicates=seeds, block_size=cells, extra_runs=0, order=order)

    def fresh(n: int) -> Design | None:
        replicates, extra = divmod(n - 1, EXTRA_RUNS + 1)
        try:
            return lattice_design(lattice, replicates=replicates + 1, block_size=1, extra_runs=extra, order=order)
        except ValueError:  # no degree of freedom yet: the next larger one may have some
            return None

    def blocked(n: int) -> Design | None:
        replicates, extra = divmod(n - 1, 2)
        try:
            return lattice_design(
                lattice, replicates=replicates + 1, extra_runs=extra * EXTRA_RUNS, order=order, seed=seed
            )
        except ValueError:  # too few blocks yet
            return None

    yield complete, paired_sigma
    if cells > BLOCK_SIZE and paired_sigma < sigma:
        yield blocked, paired_sigma
    if order is None:
        yield fresh, sigma
    else:
        least = len(model_terms(lattice, order))
        yield lambda n: optimal(lattice, least + n, order=order, seed=seed, starts=8), sigma


def _fewest(build: Callable[[int], Design | None], good: Callable[[Design], bool]) -> Design | None:
    """Smallest member of a family that is good: doubling, then halving the gap. None past MAX_PLANNED runs."""
    bad, size = 0, 1
    while True:
        design = build(size)
        if design is not None and good(design):
            break
        if size > MAX_PLANNED or (design is not None and 2 * len(design.runs) > MAX_PLANNED):
            return None
        bad, size = size, size * 2
    while size - bad > 1:
        middle = (size + bad) // 2
        candidate = build(middle)
        if candidate is not None and good(candidate):
            size, design = middle, candidate
        else:
            bad = middle
    return design


def require_precision(design: Design, *, precision: float, sigma: float, confidence: float = 0.95) -> None:
    """Nothing where the design reaches the half-width; otherwise ValueError that says how many such runs would.

    sigma: noise sd of one run, as in `Design.half_widths`.
    """
    reached = design.half_width(sigma, confidence)
    if reached <= precision:
        return
    needed = runs_for(design, precision=precision, sigma=sigma, confidence=confidence)
    how_many = f"{needed} runs of it would" if needed else f"not even {MAX_RUNS} runs of it would"
    raise ValueError(
        f"the {design.name} design with {len(design.runs)} runs reaches a half-width of {reached:.3g}, "
        f"not {precision:g}, when one run has noise {sigma:g}; {how_many}"
    )


def runs_for(design: Design, *, precision: float, sigma: float, confidence: float = 0.95) -> int | None:
    """Runs of this kind of design that reach a half-width: more seeds of a complete one, more repeats of any other."""
    level = 0.5 + design.stage_confidence(confidence) / 2
    worst = max(design.variance_multiplier)
    units = design.blocks if design.layout == "complete" else 1
    per_unit = len(design.runs) // units
    df_per_unit = {"complete": 1, "blocked": design.blocks, "independent": len(design.runs)}[design.layout]
    for n in range(units, MAX_RUNS // per_unit + 1):
        half = t_quantile(level, design.df + df_per_unit * (n - units)) * sigma * (worst * units / n) ** 0.5
        if half <= precision:
            return n * per_unit
    return None
