"""What factors do: the loss, and the effect of each component, at every level of a factor, with a test for a trend.

Every seed runs at every level, so that differences and slopes are taken within a seed and their spread over seeds is
the noise (as blocks of an experiment are; Kempthorne 1952). Where runs of a seed are no pairs, levels are independent.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ablate.attribution.estimation.pairs import compare_pairs, mean_and_sd, mean_interval
from ablate.attribution.lattice import Floats
from ablate.attribution.results import Number
from ablate.attribution.study.cells import FACTORIAL, crossed_factors, design_cells
from ablate.attribution.verdicts import Effect, beyond_margin_p, interval, with_holm
from ablate.runs.factors import PRESET, FactorFacts
from ablate.runs.plan import Plan

Series = Mapping[int, float | None]  # seed -> value, None where a run is lost


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelResponse:
    """One level: the mean with its interval, and level minus reference (None at the reference itself)."""

    label: str
    mean: Number
    n: int  # seeds
    difference: Effect | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Trend:
    """A straight line through the levels, and how far they bend from it (coefficient of the square)."""

    per: str  # "doubling" where all levels are above zero, else "unit"
    slope: Number
    slope_p: float | None
    bend: Number  # three levels give it, without a check of its form
    bend_p: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """Loss or effect along one factor. Verdicts of the differences hold together over its levels (Holm 1979)."""

    factor: FactorFacts
    of: str  # the component whose effect it is; "" for the loss
    over: tuple[str, ...]  # factors over whose levels it is averaged
    unit: str
    levels: tuple[LevelResponse, ...]
    trend: Trend | None
    trend_reason: str  # why there is none, or ""


def response(
    factor: FactorFacts,
    series: Sequence[Series],
    *,
    of: str = "",
    over: tuple[str, ...] = (),
    unit: str = "nats per token",
    margin: float,
    confidence: float,
    pairing_ok: bool,
) -> Response:
    """The response along a factor from the values of each seed at each of its levels, in the factor's order.

    pairing_ok: runs of one seed are pairs over the levels. A lost run refuses every interval that needs it.
    """
    assert len(series) == len(factor.levels)
    found = {
        label: compare_pairs(
            values, series[0], name=f"{factor.name}={label}", unit=unit, margin=margin, confidence=confidence,
            pairing_ok=pairing_ok,
        )
        for label, values in list(zip(factor.levels, series, strict=True))[1:]
        if values and series[0]
    }  # fmt: skip
    differences = with_holm(found)
    trend, reason = _trend(factor, series, confidence, pairing_ok=pairing_ok)
    return Response(
        factor=factor, of=of, over=over, unit=unit, trend=trend, trend_reason=reason,
        levels=tuple(
            LevelResponse(label=label, mean=_mean(values, confidence), n=len(_finite(values)),
                          difference=differences.get(label))
            for label, values in zip(factor.levels, series, strict=True)
        ),
    )  # fmt: skip


def averaged(groups: Sequence[Series]) -> dict[int, float | None]:
    """Seed by seed the mean over series; None where one of them lacks the seed."""
    seeds = sorted({seed for values in groups for seed in values})
    out: dict[int, float | None] = {}
    for seed in seeds:
        values = [found.get(seed) for found in groups]
        known = [value for value in values if value is not None]
        out[seed] = math.fsum(known) / len(known) if known and len(known) == len(values) else None
    return out


def _finite(values: Series) -> dict[int, float]:
    return {seed: value for seed, value in values.items() if value is not None and math.isfinite(value)}


def _mean(values: Series, confidence: float) -> Number:
    known = list(_finite(values).values())
    if not known:
        return Number(estimate=None, reason="no run has finished")
    mean, _ = mean_and_sd(known)
    if len(known) < 2:
        return Number(estimate=mean, reason="one seed gives no interval; run at least two")
    if len(known) < len(values):
        return Number(estimate=mean, reason="a run of it is lost")
    return Number(estimate=mean, low=(ends := mean_interval(known, confidence))[1], high=ends[2])


def _trend(
    factor: FactorFacts, series: Sequence[Series], confidence: float, *, pairing_ok: bool
) -> tuple[Trend | None, str]:
    if factor.positions is None:
        return None, "its levels are no numbers" if factor.name != PRESET else "a ladder of sizes has its own trend"
    if len(factor.levels) < 3:
        return None, "two levels have a difference and no trend"
    if any(len(_finite(values)) < len(values) or not values for values in series):
        return None, "a run that it needs is lost"
    x = np.asarray(factor.positions, dtype=np.float64)
    per = "doubling" if (x > 0).all() else "unit"
    x = np.log2(x) if per == "doubling" else x
    x = x - x.mean()
    line = np.linalg.pinv(np.vander(x, 2, increasing=True))[1]
    bend = np.linalg.pinv(np.vander(x, 3, increasing=True))[2]
    slope, slope_p = _contrast(line, series, confidence, paired=pairing_ok)
    curve, curve_p = _contrast(bend, series, confidence, paired=pairing_ok)
    return Trend(per=per, slope=slope, slope_p=slope_p, bend=curve, bend_p=curve_p), ""


def _contrast(
    weights: Floats, series: Sequence[Series], confidence: float, *, paired: bool
) -> tuple[Number, float | None]:
    """A weighted sum over the levels with its t-interval and the two-sided p-value of zero."""
    shared = set.intersection(*(set(values) for values in series))
    if paired and all(set(values) == shared for values in series):
        rows = np.array([[float(values[seed] or 0.0) for values in series] for seed in sorted(shared)])
        each = rows @ weights
        estimate, sd = mean_and_sd(each)
        error, df = sd / math.sqrt(len(each)), len(each) - 1.0
    else:
        groups = [list(_finite(values).values()) for values in series]
        means, sds = zip(*(mean_and_sd(group) for group in groups), strict=True)
        df = float(sum(len(group) - 1 for group in groups))
        pooled = sum((len(g) - 1) * sd**2 for g, sd in zip(groups, sds, strict=True)) / df if df else 0.0
        estimate = float(weights @ np.asarray(means))
        error = math.sqrt(pooled * sum(w**2 / len(g) for w, g in zip(weights, groups, strict=True)))
    if df < 1:
        return Number(estimate=estimate, reason="one seed gives no interval; run at least two"), None
    low, high = interval(estimate, error, df, confidence)
    return Number(estimate=estimate, low=low, high=high), beyond_margin_p(estimate, error, df, 0.0)


def study_responses(
    plan: Plan,
    losses: Mapping[str, Series],
    effects: Sequence[tuple[str, Mapping[str, str], Series]],
    unpaired: Collection[str],
) -> tuple[Response, ...]:
    """Along each factor that is crossed with the design, or makes it: the loss, and each component's effect.

    losses: variant -> its loss by seed. effects: (component, levels of the factors, its difference by seed).
    unpaired: variants with a run that is no pair. The loss is that of the first variant of each cell. A ladder of sizes
    has no responses: what it averages over would be other models on other text.
    """
    crossed = crossed_factors(plan)
    if any(f.name == PRESET for f in plan.factors):
        return ()
    firsts = [cell.variants[0] for cell in design_cells(plan)] if crossed else list(plan.variants)
    points = [("", v.levels, losses.get(v.name, dict.fromkeys(v.seeds))) for v in firsts]
    found = []
    for f in crossed or (plan.factors if plan.design.name == FACTORIAL else ()):
        over = tuple(other.name for other in crossed or plan.factors if other != f)
        for of in dict.fromkeys(name for name, _, _ in (*points, *effects)):
            at = [[s for name, levels, s in (*points, *effects) if name == of and levels.get(f.name) == label]
                  for label in f.levels]  # fmt: skip
            if all(at):
                found.append(
                    response(
                        f, [averaged(each) for each in at], of=of, over=over, margin=plan.margin_nats,
                        confidence=plan.interval_confidence,
                        pairing_ok=not any(v.name in unpaired for v in plan.variants),
                    )
                )  # fmt: skip
    return tuple(found)
