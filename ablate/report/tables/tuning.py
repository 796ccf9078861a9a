"""Tables of tuned learning rates: effects at the shared rate beside those at each own, rates, screened losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ablate.attribution.gain.compute_gain import DecayedCurve, loss_slope
from ablate.attribution.indices import index_weights
from ablate.attribution.results import Attribution, Number
from ablate.attribution.study.compare import Comparison, StudyResult, compare
from ablate.attribution.study.gains import ComponentGain, component_gains, decayed_curves
from ablate.attribution.study.tuning import Tuned, contrast, tuned, widened, widened_gain, widened_index
from ablate.attribution.verdicts import NOT_RESOLVED, Effect
from ablate.quantities import NONE, listed, number, plural, short, signed, signed_between, significant
from ablate.report.names import confidence, label
from ablate.report.tables.effects import headline
from ablate.report.tables.gain import as_factor
from ablate.report.tables.table import Columns, Table, make, text
from ablate.runs.plan import Plan, read_plan
from ablate.runs.store import Store

UNIT = "nats per token"
NOT_RUN = "not run"  # where a verdict would stand
SCREENING, SHARED = "tuning", "shared"  # folders in that of the study


@dataclass(frozen=True, kw_only=True, slots=True)
class TunedEffect:
    """A comparison at the shared rate, where it was run, and at the own ones with what is not known of these."""

    name: str
    variant: str
    shared: Effect | None
    own: Effect


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningSection:
    """What a report says of tuned rates; `found` is what the figures draw."""

    found: Tuned
    sides: Table  # at the shared rate and at the own ones
    rates: Table
    losses: Table
    notes: tuple[str, ...]
    effects: tuple[TunedEffect, ...]  # of designs that compare pairs


def tuning(folder: Path, result: StudyResult) -> TuningSection | None:
    """The section of a study whose rates were tuned; None for another. ValueError if its screening is damaged."""
    store = Store(folder / SCREENING)
    if not store.plan_file.is_file():
        return None
    plan = read_plan(store.plan_file)
    records = {record.run_id: record for record in store}
    rate = shared_rate(plan)
    found = tuned(plan, [v.planned for v in result.variants], records, rate)
    at_shared = _shared(Store(folder / SHARED))
    return TuningSection(
        found=found,
        sides=_sides(found, result, at_shared),
        rates=_rates(found, result),
        losses=_losses(found),
        notes=tuple(_notes(found, plan, result, at_shared)),
        effects=tuple(_effect(c, found, at_shared) for c in result.comparisons),
    )


def shared_rate(screening: Plan) -> float:
    """The centre of the screened rates in octaves, which is the preset's."""
    rates = [v.learning_rate for v in screening.variants]
    return float(f"{(min(rates) * max(rates)) ** 0.5:.4g}")


def _shared(store: Store) -> StudyResult | None:
    if not store.plan_file.is_file():
        return None
    return compare(read_plan(store.plan_file), list(store), store.failures())


def _sides(found: Tuned, result: StudyResult, shared: StudyResult | None) -> Table:
    columns: Columns = [text("Component"), f"At the shared rate, {short(found.shared_rate)}", text("Verdict"),
                        "At its own rate", text("Verdict"), "Own minus shared",
                        "Training FLOPs for the same loss, at its own rate"]  # fmt: skip
    gains = {gain.comparison.variant: gain for gain in component_gains(result)[0]}
    curves = {v.name: decayed_curves(v) for v in result.variants}
    rows = [
        [*_compared(c, found, shared), _in_compute(gains.get(c.variant), curves[c.with_variant], found)]
        for c in result.comparisons
    ]
    if not rows and result.attribution is not None:
        asked = Effect(name="", unit=UNIT, estimate=None, low=None, high=None, n=0, verdict=NOT_RESOLVED,
                       confidence=result.plan.interval_confidence, margin=result.plan.margin_nats)  # fmt: skip
        rows = _attributed(result.attribution, found, shared.attribution if shared else None, asked)
    note = (
        f"With minus without, nats per token, with {confidence(result)} intervals; below zero the component lowers the "
        "loss. Intervals and verdicts at the own rates take in what the screening does not know of each optimum; the "
        "other tables of this report have those of the design alone."
    )
    return make("Effects at the shared learning rate and at each variant's own", columns, rows, note)


def _effect(c: Comparison, found: Tuned, shared: StudyResult | None) -> TunedEffect:
    own = widened(c.loss, contrast(found, c.with_variant, c.without_variant), found)
    other = next((each.loss for each in shared.comparisons if each.variant == c.variant), None) if shared else None
    return TunedEffect(name=c.name, variant=c.variant, shared=other, own=own)


def _compared(c: Comparison, found: Tuned, shared: StudyResult | None) -> list[str]:
    effect = _effect(c, found, shared)
    own, other = effect.own, effect.shared
    return [label(c), _said(other), other.verdict if other else NOT_RUN, _said(own), own.verdict,
            _difference(own.estimate, other.estimate if other else None)]  # fmt: skip


def _in_compute(gain: ComponentGain | None, curves: Sequence[DecayedCurve], found: Tuned) -> str:
    if gain is None:
        return NONE
    c = gain.comparison
    try:
        slope = loss_slope(curves, gain.target.loss)
    except ValueError:  # it does not reach the target: the gain is a bound
        return as_factor(gain.flops)
    return as_factor(widened_gain(gain.flops, slope, contrast(found, c.with_variant, c.without_variant), found))


def _difference(own: float | None, shared: float | None) -> str:
    return NONE if own is None or shared is None else signed(own - shared)


def _said(effect: Effect | Number | None) -> str:
    if effect is None:
        return NONE
    ends = f" ({signed_between(effect.low, effect.high)})" if effect.low is not None else " (no interval)"
    return signed(effect.estimate) + ends


def _attributed(
    own: Attribution, found: Tuned, shared: Attribution | None, asked: Effect
) -> list[list[str]]:  # fmt: skip
    index = headline(own) or "owen"
    weights = dict(zip(found.parts.components, index_weights(found.parts, index), strict=True))
    rows = []
    for name, effect in own.effects.items():
        here = widened_index(effect.indices[index], effect, weights[name], found, asked)
        other = shared.effects.get(name) if shared else None
        there = other.indices[index] if other else None
        rows.append([name, _said(there), other.verdict if other else NOT_RUN, _said(here), here.verdict,
                     _difference(here.estimate, there.estimate if there else None), NONE])  # fmt: skip
    return rows


def _rates(found: Tuned, result: StudyResult) -> Table:
    screened = {response.variant: response for response in found.responses}
    rows = []
    for v in result.variants:
        response = screened.get(v.name)
        trials = NONE if response is None else f"{len(response.points)}"
        lost = NONE if response is None else str(sum(p.status == "diverged" for p in response.points))
        curvature = significant(found.curvature(found.cells[v.name])) if found.fitted is not None else NONE
        held = "yes" if v.name in found.clipped else "no"
        rows.append([v.name, short(v.planned.learning_rate), signed(found.octaves[v.name], 2), curvature, held, trials,
                     lost])  # fmt: skip
    columns: Columns = [text("Variant"), "Own rate", "Octaves from the shared", "Curvature, nats/octave²",
                        text("Held at an end of the range"), "Trials", "Diverged"]  # fmt: skip
    note = (
        "An own rate is the minimum of one response surface fitted to all screening runs (a level for each screened "
        "variant, a slope that is linear in the components, a curvature), and not the best of the tried ones, which "
        "would win by luck alone."
    )
    return make("Learning rates", columns, rows, note)


def _losses(found: Tuned) -> Table:
    rates = sorted({p.learning_rate for response in found.responses for p in response.points})
    rows = []
    for response in found.responses:
        at = {p.learning_rate: number(p.loss) if p.loss is not None else p.status for p in response.points}
        rows.append([response.variant, *(at.get(rate, NONE) for rate in rates)])
    columns: Columns = [text("Variant"), *(f"at {short(rate)}" for rate in rates)]
    return make("Response curves: held-out loss of the screening runs, nats per token", columns, rows)


def _notes(found: Tuned, plan: Plan, result: StudyResult, shared: StudyResult | None) -> list[str]:
    each = {len(response.points) for response in found.responses}
    n, screened = len(found.responses), f"{plural(len(found.responses), 'variant')}"
    said = [
        f"Every screened variant had {plural(max(each), 'trial')} on seed {plan.seeds[0]}, {screened} of "
        f"{len(result.variants)}; the effects come from other seeds."
        if len(each) == 1
        else "The screened variants had unequal numbers of trials: their rates are not comparable."
    ]
    if n < len(result.variants):
        said.append("The rates of the other variants are predicted by the surface, as if slopes added up.")
    if found.clipped:
        said.append(
            f"The optimum of {listed(found.clipped)} lies at an end of the screened range or beyond: held there."
        )
    if shared is None:
        said.append("The design was not run at the shared rate (tuning.shared = false): no effect is given for it.")
    if result.plan.budget != plan.budget:
        said.append(
            f"Screening runs had {short(plan.budget / result.plan.budget)} of the budget of a run: that the best rate "
            "is the same for a whole run is an assumption."
        )
    return [*said, *(note[0].upper() + note[1:] + "." for note in found.notes)]
