"""Tuned learning rates: what the screening of a study says of each variant's optimum, and the effects at it.

Two stages (METHOD: fair tuning; `ablate.attribution.gain.learning_rate`): equal trials of every screened variant on one
grid of rates and one seed, one response surface for all, the predicted optimum of each variant inside the screened
range. Where the surface has no minimum the better end of the range is taken, and said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ablate.attribution.gain.compute_gain import Gain
from ablate.attribution.gain.learning_rate import (
    LearningRates,
    ResponseSurface,
    Trial,
    fit_surface,
    missed_optimum_variance,
    predict_optima,
    tuned_effects,
)
from ablate.attribution.lattice import Floats, Lattice, lattice
from ablate.attribution.results import ComponentEffect, Number
from ablate.attribution.study.designed import Named, cell_of, design_lattice
from ablate.attribution.verdicts import GAIN, HARM, NO_EFFECT, NOT_RESOLVED, Effect, t_quantile
from ablate.components.component import ON
from ablate.quantities import listed, short
from ablate.runs.plan import Plan
from ablate.runs.record import RunRecord

LOSS = "nats_per_token"
FEWEST_RATES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A screening run."""

    learning_rate: float
    octaves: float  # from the shared rate
    run_id: str
    status: str  # finished, diverged or missing
    loss: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """The losses of a screened variant against its rate."""

    variant: str
    cell: int
    points: tuple[Point, ...]
    level: float | None  # of the fitted parabola at the shared rate, nats per token


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    """What a screening says. `fitted` is None where no minimum was found; `used` is the range it is from."""

    shared_rate: float
    used: tuple[float, float]  # octaves: up to where every screened variant finished
    responses: tuple[Response, ...]
    rates: Mapping[str, float]  # variant of the study -> learning rate
    octaves: Mapping[str, float]
    clipped: tuple[str, ...]  # held at an end of the range
    parts: Lattice
    cells: Mapping[str, int]  # variant of the study -> its cell
    surface: ResponseSurface | None
    fitted: LearningRates | None
    notes: tuple[str, ...]

    def slope(self, cell: int) -> float:
        """Of the fitted parabola at the shared rate, nats per octave."""
        assert self.surface is not None
        on = [1.0, *(float(cell >> i & 1) for i in range(len(self.parts.components)))]
        return float(np.dot(on, self.surface.coefficients[: len(on)]))

    def curvature(self, cell: int) -> float:
        """Nats per octave squared."""
        assert self.fitted is not None
        return float(self.fitted.curvature[self.parts.cells.index(cell)])


def tuning_lattice(variants: Sequence[Named]) -> tuple[Lattice, dict[str, int]]:
    """The lattice that a response surface is fitted over, and each variant's cell.

    Two variants are one player, however many components they differ in.
    """
    if len(variants) > 2:
        parts = design_lattice(variants)
        return parts, {v.name: cell_of(parts, v) for v in variants}
    n_on = [sum(level == ON for level in v.levels.values()) for v in variants]
    differing = [n for n in variants[0].levels if len({v.levels.get(n) for v in variants}) == 2]
    parts = lattice(["+".join(differing) or "variant"])
    cells = {v.name: int(n == max(n_on)) for v, n in zip(variants, n_on, strict=True)}
    return replace(parts, labels=tuple((cell, name) for name, cell in cells.items())), cells


def tuned(screening: Plan, variants: Sequence[Named], records: Mapping[str, RunRecord], shared_rate: float) -> Tuned:
    """The rates of a study's variants from the records of its screening.

    ValueError where a screening run has no record yet, or fewer than three rates are left that suit every variant.
    """
    parts, cells = tuning_lattice(variants)
    by_levels = {tuple(sorted(v.levels.items())): v.name for v in variants}
    points: dict[str, list[Point]] = {}
    for planned in screening.variants:
        name = by_levels[tuple(sorted(planned.levels.items()))]
        points.setdefault(name, []).append(_point(planned.learning_rate, planned.run_ids[0], records, shared_rate))
    used, notes = _used_range(points)
    kept = {name: [p for p in own if used[0] <= p.octaves <= used[1]] for name, own in points.items()}
    trials = [
        Trial(cell=cells[name], log2_lr=p.octaves, seed=screening.seeds[0], loss=p.loss)
        for name, own in kept.items()
        for p in own
        if p.loss is not None
    ]
    surface, fitted, why = _fit(parts, trials, used)
    octaves, clipped = _optima(parts, cells, fitted, kept, used)
    return Tuned(
        shared_rate=shared_rate,
        used=used,
        responses=tuple(
            Response(variant=name, cell=cells[name], points=tuple(own), level=_level(surface, cells[name], kept[name]))
            for name, own in points.items()
        ),
        rates={name: float(f"{shared_rate * 2**at:.4g}") for name, at in octaves.items()},
        octaves=octaves,
        clipped=clipped,
        parts=parts,
        cells=cells,
        surface=surface,
        fitted=fitted,
        notes=(*notes, *why),
    )


def _point(rate: float, run_id: str, records: Mapping[str, RunRecord], shared: float) -> Point:
    record, octaves = records.get(run_id), round(math.log2(rate / shared), 3)
    status = "missing" if record is None else record.status
    loss = record.metrics[LOSS] if record is not None and record.status == "finished" else None
    return Point(learning_rate=rate, octaves=octaves, run_id=run_id, status=status, loss=loss)


def _used_range(points: Mapping[str, Sequence[Point]]) -> tuple[tuple[float, float], tuple[str, ...]]:
    """Octaves up to where no screened variant diverged: narrowed for all alike, so that none has another range."""
    missing = [
        f"{name} at {short(p.learning_rate)}" for name, own in points.items() for p in own if p.status == "missing"
    ]
    if missing:
        raise ValueError(
            f"{len(missing)} screening runs have no record yet ({listed(missing[:4])}); sweep the study again"
        )
    every = sorted({p.octaves for own in points.values() for p in own})
    lost = [(name, p) for name, own in points.items() for p in own if p.status == "diverged"]
    left = [at for at in every if all(at < p.octaves for _, p in lost)]
    if len(left) < FEWEST_RATES:
        names = listed(f"{name} at {short(p.learning_rate)}" for name, p in lost[:4])
        raise ValueError(
            f"screening runs diverged ({names}), and fewer than {FEWEST_RATES} rates lie below all of them; give a "
            "lower trainer.learning_rate, fewer tuning.octaves or more tuning.trials, and another folder with --out"
        )
    said = [
        f"{name} diverged at {short(p.learning_rate)}, so no variant's fit uses that rate or a higher one"
        for name, p in lost
    ]
    return (left[0], left[-1]), tuple(said)


def _fit(
    parts: Lattice, trials: Sequence[Trial], used: tuple[float, float]
) -> tuple[ResponseSurface | None, LearningRates | None, tuple[str, ...]]:
    """The surface with the most that the trials determine: a curvature that differs by component, else one for all."""
    surface, why = None, ""
    for by in (None, ()):
        try:
            surface = fit_surface(parts, trials, curvature_by=by)
            return surface, predict_optima(surface, low=used[0], high=used[1]), ()
        except ValueError as error:
            why = str(error)
    return surface, None, (f"no optimum could be fitted ({why}); each variant has the better end of the range",)


def _optima(
    parts: Lattice,
    cells: Mapping[str, int],
    fitted: LearningRates | None,
    kept: Mapping[str, Sequence[Point]],
    used: tuple[float, float],
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Octaves of each variant's optimum, and the variants that are held at an end of the range."""
    if fitted is not None:
        at = {name: float(fitted.log2_lr[parts.cells.index(cell)]) for name, cell in cells.items()}
        return at, tuple(name for name in at if at[name] in used)
    # Not the best of the screened rates: that would win by luck. Ends are compared over all variants together.
    low, high = (
        sum(p.loss for own in kept.values() for p in own if p.octaves == end and p.loss is not None) for end in used
    )
    return dict.fromkeys(cells, used[0] if low < high else used[1]), tuple(cells)


def _level(surface: ResponseSurface | None, cell: int, points: Sequence[Point]) -> float | None:
    """Mean of what the parabola leaves of a variant's losses: its level at the shared rate."""
    if surface is None:
        return None
    n = 1 + len(surface.lattice.components)
    on = np.array([1.0, *(float(cell >> i & 1) for i in range(n - 1))])
    by = np.array([1.0, *(float(cell >> surface.lattice.components.index(c) & 1) for c in surface.curvature_by)])
    slope, curvature = float(on @ surface.coefficients[:n]), float(by @ surface.coefficients[n:])
    rest = [p.loss - slope * p.octaves - curvature * p.octaves**2 for p in points if p.loss is not None]
    return float(np.mean(rest))


def widened(effect: Effect, weights: Floats, found: Tuned) -> Effect:
    """An effect between variants at their predicted optima, with what the prediction does not know in its interval.

    weights: (C,) of the effect over the cells of the screening's lattice. An effect without an interval stays so.
    """
    if effect.estimate is None or effect.standard_error is None or effect.df is None:
        return effect
    if found.fitted is None:
        return replace(effect, low=None, high=None, reason="no optimum could be fitted", verdict=NOT_RESOLVED)
    estimate, error = np.array([effect.estimate]), np.array([effect.standard_error])
    whole = tuned_effects(
        estimate, error, df=effect.df, rates=found.fitted, weights=weights[None, :], confidence=effect.confidence
    )
    wide = replace(effect, low=float(whole.low[0]), high=float(whole.high[0]))
    return replace(wide, standard_error=float(whole.standard_error[0]), verdict=_kept(wide, effect.df))


def widened_index(number: Number, effect: ComponentEffect, weights: Floats, found: Tuned, asked: Effect) -> Effect:
    """The same of one index of a design, whose interval is known without its degrees of freedom.

    asked: the effect without numbers: its unit, confidence and margin. The share of the missed optima has the degrees
    of freedom of the screening's surface.
    """
    given = replace(asked, estimate=number.estimate, low=number.low, high=number.high, n=effect.n,
                    verdict=effect.verdict, family=effect.family, reason=number.reason)  # fmt: skip
    if number.estimate is None or number.low is None or number.high is None:
        return given
    if found.fitted is None or found.surface is None:
        return replace(given, low=None, high=None, reason="no optimum could be fitted", verdict=NOT_RESOLVED)
    t = t_quantile(0.5 + asked.confidence / 2, found.surface.df)
    extra = t * math.sqrt(float(missed_optimum_variance(found.fitted, weights[None, :])[0]))
    low = number.estimate - math.hypot(number.estimate - number.low, extra)
    high = number.estimate + math.hypot(number.high - number.estimate, extra)
    wide = replace(given, low=low, high=high)
    return replace(wide, verdict=_kept(wide, found.surface.df))


def widened_gain(gain: Gain, slope: float, weights: Floats, found: Tuned) -> Gain | None:
    """A gain in log cost between variants at their predicted optima; None where no optimum could be fitted.

    slope: nats per e-fold of tokens at the target (`loss_slope`), by which missed nats are missed cost. A bound stays.
    """
    if found.fitted is None:
        return None
    if gain.estimate is None or gain.standard_error is None:
        return gain
    estimate, error = np.array([gain.estimate]), np.array([gain.standard_error])
    whole = tuned_effects(
        estimate, error, df=gain.df, rates=found.fitted, weights=weights[None, :], nats_per_unit=slope,
        confidence=gain.confidence,
    )  # fmt: skip
    return replace(gain, low=float(whole.low[0]), high=float(whole.high[0]),
                   standard_error=float(whole.standard_error[0]))  # fmt: skip


def _kept(wide: Effect, df: float) -> str:
    """The design's verdict if it holds with the wider interval too, else not resolved: widening decides nothing.

    Gain and harm, which Holm corrected over a family, must hold at Bonferroni's level, the strictest of Holm's; no
    effect within the margin must hold for the whole interval.
    """
    assert wide.estimate is not None
    assert wide.low is not None
    assert wide.high is not None
    strict = 1 - (1 - wide.confidence) / wide.family
    stretch = t_quantile(0.5 + strict / 2, df) / t_quantile(0.5 + wide.confidence / 2, df)
    low, high = (wide.estimate + stretch * (end - wide.estimate) for end in (wide.low, wide.high))
    holds = {
        GAIN: high < -wide.margin,
        HARM: low > wide.margin,
        NO_EFFECT: -wide.margin <= wide.low and wide.high <= wide.margin,
    }
    return wide.verdict if holds.get(wide.verdict) else NOT_RESOLVED


def contrast(found: Tuned, with_variant: str, without_variant: str) -> Floats:
    """(C,) weights of with minus without over the cells of the screening's lattice."""
    weights = np.zeros(len(found.parts.cells))
    weights[found.parts.cells.index(found.cells[with_variant])] += 1.0
    weights[found.parts.cells.index(found.cells[without_variant])] -= 1.0
    return weights
