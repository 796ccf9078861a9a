"""From the dense end to the full recipe, component by component: what a design's waterfall shows, as values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ablate.attribution.gain.compute_gain import log_tokens_to
from ablate.attribution.indices import index_weights, undefined_reason
from ablate.attribution.study.compare import StudyResult
from ablate.attribution.study.designed import cell_of, design_lattice
from ablate.attribution.study.gains import SplitCost, decayed_curves
from ablate.attribution.verdicts import GAIN, HARM, NOT_RESOLVED
from ablate.quantities import duration, number, signed
from ablate.report.cleaning import clean
from ablate.report.names import known, ladder_sizes
from ablate.report.tables.effects import design_run_s

LATTICE_FILE, LATTICE_RUNS = "sweeps/which-change-mattered.toml", 54  # a test holds the two together
ENDS = ("the dense end", "the full recipe")
COST, LOSS = "training FLOPs for the same loss", "held-out loss, nats per token"


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One component's share of the way, in ln of cost or in nats: positive is dearer or worse.

    `before`: where it starts, which is where the step before it ended.
    `first` and `last`: the same component added to none of the others and left out of all; None where not known.
    """

    name: str
    size: float
    low: float | None
    high: float | None
    before: float
    verdict: str
    first: float | None = None
    last: float | None = None

    @property
    def after(self) -> float:
        return self.before + self.size


@dataclass(frozen=True, kw_only=True, slots=True)
class Waterfall:
    """The steps in the order of the registry, prerequisites first, from the variant with none of them on at zero."""

    unit: str  # COST, in ln, or LOSS
    steps: tuple[Step, ...]
    ends: tuple[str, str] = ENDS  # what the variants with none and with all of the components on are called

    @property
    def total(self) -> float:
        return sum(step.size for step in self.steps)

    def said(self, size: float) -> str:
        """A size in the unit that people read: 1.15×, or +0.0754."""
        return f"{number(math.exp(size), 2)}×" if self.unit == COST else signed(size, 3)


def waterfall(result: StudyResult, cost: SplitCost | None) -> Waterfall | None:
    """Of a design that shares its whole total out; in compute where its runs give that, else in nats."""
    found = _of_cost(result, cost) if cost is not None else _of_loss(result)
    return None if found is None else replace(found, ends=_ends(result))


def _ends(result: StudyResult) -> tuple[str, str]:
    parts = design_lattice(result.plan.variants, result.plan.factors)
    first, last = (clean(parts.label(cell)) for cell in (0, parts.full))
    return ENDS[0] if first == "none" else first, ENDS[1] if last == "full" else last


def _of_cost(result: StudyResult, cost: SplitCost) -> Waterfall:
    """Cost is what gains save, so every sign turns; an interval that excludes zero decides the colour."""
    table = cost.table.first(2)
    first, last = _one_at_a_time(result, cost)
    steps, at = [], 0.0
    for k, name in enumerate(table.components):
        low, high = (float(x) for x in table.component_intervals(result.plan.interval_confidence)[k])
        size = -float(table.by_component[k])
        verdict = GAIN if low > 0 else HARM if high < 0 else NOT_RESOLVED
        steps.append(Step(name=clean(name), size=size, low=-high, high=-low, before=at, verdict=verdict,
                          first=first.get(name), last=last.get(name)))  # fmt: skip
        at += size
    return Waterfall(unit=COST, steps=tuple(steps))


def _one_at_a_time(result: StudyResult, cost: SplitCost) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Component -> ln cost when it is added to none of the others, and when only it is left out."""
    parts = design_lattice(result.plan.variants, result.plan.factors)
    by_cell = {cell_of(parts, v.planned): v for v in result.variants}
    values = []
    for cell in parts.cells:
        v = by_cell[cell]
        tokens = [log_tokens_to(curve, cost.target.loss) for curve in decayed_curves(v)]
        values.append(sum(tokens) / len(tokens) + math.log(v.planned.flops / v.planned.n_tokens))
    found = []
    for index in ("first", "last"):
        known = undefined_reason(parts, index) is None
        sizes = index_weights(parts, index) @ np.array(values) if known else ()
        found.append({name: float(size) for name, size in zip(parts.components, sizes, strict=False)})
    return found[0], found[1]


def _of_loss(result: StudyResult) -> Waterfall | None:
    found = result.attribution
    if found is None or found.total.estimate is None:
        return None
    shares = {name: effect.indices.get("owen") for name, effect in found.effects.items()}
    if any(share is None or share.estimate is None for share in shares.values()):
        return None
    steps, at = [], 0.0
    for name, effect in found.effects.items():
        owen = effect.indices["owen"]
        assert owen.estimate is not None
        first, last = (effect.indices[i].estimate if i in effect.indices else None for i in ("first", "last"))
        verdict = effect.verdict if effect.verdict_from == "owen" else NOT_RESOLVED
        steps.append(Step(name=clean(name), size=owen.estimate, low=owen.low, high=owen.high, before=at,
                          verdict=verdict, first=first, last=last))  # fmt: skip
        at += owen.estimate
    return Waterfall(unit=LOSS, steps=tuple(steps))


def who_can(result: StudyResult) -> str:
    """For a study of components without a waterfall: the study file that gives one, and its time at this speed."""
    names = {change.component for c in result.comparisons for change in c.changes}
    names |= set(result.attribution.effects if result.attribution else ())
    if ladder_sizes(result) or not any(known(name) for name in names):
        return ""
    run_s = design_run_s(result)
    time = "" if run_s is None else f", about {duration(LATTICE_RUNS * run_s)} one after another at this study's speed"
    return (
        "This study does not run every feasible variant, so it cannot share the whole distance from the dense end to "
        f"the full recipe out among the components. {LATTICE_FILE} does: {LATTICE_RUNS} runs{time}."
    )


def strongest(steps: Sequence[Step], verdict: str) -> Step | None:
    """The largest step of a verdict."""
    return max((s for s in steps if s.verdict == verdict), key=lambda s: abs(s.size), default=None)
