"""A study's plan and records as its results: every variant's figures, every effect, and what to be wary of."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ablate.attribution.estimation.noise import NoiseFloor, noise_floor, sd_ends
from ablate.attribution.estimation.pairs import compare_pairs, mean_and_sd, mean_interval
from ablate.attribution.results import Attribution
from ablate.attribution.study.by_cell import CellEffects, by_cell
from ablate.attribution.study.cells import design_cells, sizes_apart
from ablate.attribution.study.comparability import no_spread, warnings_of
from ablate.attribution.study.designed import AGAINST_REFERENCE, attribute_design
from ablate.attribution.study.pairing import PairingBreak, PairingGain, broken_pairs, pairing_breaks, pairing_gain
from ablate.attribution.study.responses import Response, study_responses
from ablate.attribution.verdicts import Effect, seeds_needed, with_holm
from ablate.components.component import ON
from ablate.components.registry import NAMES, component
from ablate.quantities import listed
from ablate.runs.plan import Plan, PlannedVariant
from ablate.runs.record import Failure, RunRecord, RunStatus

LOSS = "nats_per_token"
SPEED = "tokens_per_s"
TARGET_NATS = 0.02  # the difference that planning figures are given for
SPEED_MARGIN = math.log(1.02)  # speeds within 2 % of each other are of no interest
NOT_METRICS = ("step", "n_tokens", "learning_rate")  # where on the curve a figure was taken


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A planned run and what became of it. `record` is that of a finished or diverged run."""

    variant: str
    seed: int
    run_id: str
    status: RunStatus
    reason: str = ""
    record: RunRecord | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One figure over the seeds of the finished runs; the interval is None below two of them."""

    values: Mapping[int, float]  # seed -> value
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    median: float
    minimum: float
    maximum: float

    @property
    def n(self) -> int:
        return len(self.values)


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantResult:
    """A variant: what was planned for it, what became of its runs, and its figures by metric."""

    planned: PlannedVariant
    runs: tuple[Run, ...]
    metrics: Mapping[str, Metric]
    evidence: Mapping[str, tuple[str, ...]]  # metric group -> kinds among the finished runs
    backends: Mapping[str, tuple[str, ...]]

    @property
    def name(self) -> str:
        return self.planned.name

    @property
    def finished(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.status == "finished")

    @property
    def counts(self) -> dict[str, int]:
        """Runs by status."""
        return {s: n for s in STATUSES if (n := sum(run.status == s for run in self.runs))}

    @property
    def run_s(self) -> float | None:
        """Seconds of one run: the median of the finished ones, else as planned."""
        return self.metrics["seconds"].median if "seconds" in self.metrics else self.planned.run_s


STATUSES: tuple[RunStatus, ...] = ("finished", "diverged", "failed", "missing")


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A component whose level differs between the two sides.

    `forced`: it means nothing beside another one that is off, so turning that one off took it along.
    """

    component: str
    with_level: str
    without_level: str
    forced: bool = False

    @property
    def name(self) -> str:
        """The component; of a factor, or of a component at another level than on, with that level."""
        return self.component if self.with_level == ON else f"{self.component}={self.with_level}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What was turned off is worth: with minus without, so that a negative loss difference is a gain."""

    variant: str  # the one that is not the reference
    with_variant: str
    without_variant: str
    changes: tuple[Change, ...]
    at: str  # the levels of the factors that the design is crossed with, as in "preset=cpu", or ""
    loss: Effect  # nats per token
    other_sets: Mapping[str, Effect]  # further held-out set -> the same on it
    speed: Effect | None  # ln of tokens per second with over without
    speed_reason: str  # why there is no speed, or ""
    speed_evidence: tuple[str, ...]
    pairing_ok: bool
    pairing_reason: str
    differences: Mapping[int, float]  # seed -> loss with minus without, where both runs finished
    pairing_gain: PairingGain | None  # what sharing seeds did, where runs are pairs and vary
    pair_s: float | None  # seconds of one more run of both variants, one after the other
    target_seeds: int | None  # pairs that resolve TARGET_NATS beyond the margin; None where no number would
    margin_seeds: int | None  # pairs that show a true difference of zero to lie within the margin
    pair_sd_ends: tuple[float, float] | None  # interval of the sd that both are planned with
    most_target_seeds: int | None  # the same two if the sd is at the upper end of that
    most_margin_seeds: int | None

    @property
    def name(self) -> str:
        """What was turned off, without what it took along."""
        return _name(self.changes, self.variant, self.at)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyResult:
    """Everything that a report says in numbers. The first variant is the reference."""

    plan: Plan
    variants: tuple[VariantResult, ...]
    comparisons: tuple[Comparison, ...]
    attribution: Attribution | None  # of a designed study: the total split among the components
    attribution_reason: str  # why there is none, or ""
    noise: NoiseFloor | None
    noise_reason: str
    pairing_breaks: tuple[PairingBreak, ...]  # runs that are no pairs of those with their seed
    cells: CellEffects  # the components' effects where a design is crossed with factors
    responses: tuple[Response, ...]  # to factors
    warnings: tuple[str, ...] = field(default=())

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(run for variant in self.variants for run in variant.runs)

    @property
    def held_out_sets(self) -> tuple[str, ...]:
        """Names of held-out sets beside the corpus's own."""
        names = {name for variant in self.variants for name in variant.metrics}
        return tuple(sorted(n.removesuffix(f"_{LOSS}") for n in names if n.endswith(f"_{LOSS}")))


def compare(facts: Plan, records: Sequence[RunRecord], failures: Sequence[Failure]) -> StudyResult:
    """The results of a study from its plan's summary and what its runs left.

    A run that diverged, failed or is missing is in no mean, and refuses the interval of every effect it belongs to.
    ValueError where the plan is not one.
    """
    kept = {record.run_id: record for record in records}
    lost = {failure.run_id: failure for failure in failures if failure.run_id not in kept}
    variants = tuple(_variant(planned, facts, kept, lost) for planned in facts.variants)
    noise, reason = _noise(variants)
    finished = {v.name: [run.record for run in v.finished if run.record is not None] for v in variants}
    breaks = tuple(
        found for group in sizes_apart(facts) for found in pairing_breaks({name: finished[name] for name in group})
    )
    by_name = {v.name: v for v in variants}
    against = [
        (by_name[cell.variants[0].name], by_name[planned.name], cell.label)
        for cell in (design_cells(facts) if facts.design.name in AGAINST_REFERENCE else ())
        for planned in cell.variants[1:]
    ]
    comparisons = _corrected([_comparison(*pair, facts, noise, breaks, len(against)) for pair in against])
    statuses = {run.run_id: run.status for v in variants for run in v.runs}
    ended = {record.run_id: record for records in finished.values() for record in records}
    alone = {found.run_id for found in breaks}
    compared = {c.name: c.loss for c in comparisons if not c.at}
    attribution, why = attribute_design(facts, statuses, ended, LOSS, alone, compared)
    return StudyResult(
        plan=facts,
        variants=variants,
        comparisons=comparisons,
        attribution=attribution,
        attribution_reason=why,
        noise=noise,
        noise_reason=reason,
        pairing_breaks=breaks,
        cells=by_cell(facts, comparisons, statuses, ended, alone),
        responses=study_responses(
            facts,
            {v.name: _values(v, LOSS) for v in variants},
            [
                (c.name.removesuffix(f" at {c.at}"), by_name[c.with_variant].planned.levels, c.differences)
                for c in comparisons
                if c.at
            ],
            {found.variant for found in breaks},
        ),
        warnings=(*_of_design(facts), *(attribution.warnings if attribution else ()))
        + _of_runs(facts, kept, variants, breaks, comparisons),
    )


def _of_runs(
    facts: Plan, kept: Mapping[str, RunRecord], variants: Sequence[VariantResult], breaks: Sequence[PairingBreak],
    comparisons: Sequence[Comparison],
) -> tuple[str, ...]:  # fmt: skip
    """What is to be known of the runs before they are compared."""
    finished = [run.record for v in variants for run in v.finished if run.record is not None]
    strangers = sorted(set(kept) - {run_id for planned in facts.variants for run_id in planned.run_ids})
    losses = {v.name: v.metrics[LOSS].values for v in variants if LOSS in v.metrics}
    return (
        *warnings_of(finished, strangers, {v.name: v.backends for v in variants}),
        *broken_pairs(breaks, {c.name: c.pairing_reason for c in comparisons if not c.pairing_ok}),
        *no_spread(losses, [c.loss for c in comparisons] if facts.design.name == "one" else []),
    )


def _corrected(found: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """The comparisons with verdicts that hold together: those on the loss, and those on each further held-out set."""
    losses = with_holm({c.variant: c.loss for c in found})
    names = {name for c in found for name in c.other_sets}
    sets = {name: with_holm({c.variant: c.other_sets[name] for c in found if name in c.other_sets}) for name in names}
    return tuple(
        replace(c, loss=losses[c.variant], other_sets={name: sets[name][c.variant] for name in c.other_sets})
        for c in found
    )


def _of_design(facts: Plan) -> tuple[str, ...]:
    if facts.design.stages == 1:
        return ()
    return (
        f"the design is read {facts.design.stages} times, so each interval is one of {facts.interval_confidence:.4g}: "
        f"all readings together keep {facts.confidence:.4g}",
    )


def _variant(
    planned: PlannedVariant, facts: Plan, kept: Mapping[str, RunRecord], lost: Mapping[str, Failure]
) -> VariantResult:
    runs = tuple(
        _run(planned.name, seed, run_id, kept.get(run_id), lost.get(run_id))
        for seed, run_id in zip(planned.seeds, planned.run_ids, strict=True)
    )
    finished = {run.seed: run.record for run in runs if run.status == "finished" and run.record is not None}
    names = sorted({name for record in finished.values() for name in record.metrics} - set(NOT_METRICS))
    metrics = {}
    for name in names:
        values = {seed: record.metrics[name] for seed, record in finished.items() if name in record.metrics}
        metrics[name] = _metric(values, facts.interval_confidence)
    return VariantResult(
        planned=planned,
        runs=runs,
        metrics=metrics,
        evidence=_kinds([record.evidence for record in finished.values()]),
        backends=_kinds([record.backends for record in finished.values()]),
    )


def _run(variant: str, seed: int, run_id: str, record: RunRecord | None, failure: Failure | None) -> Run:
    if record is None and failure is not None:
        return Run(variant=variant, seed=seed, run_id=run_id, status="failed", reason=failure.reason)
    if record is None:
        return Run(variant=variant, seed=seed, run_id=run_id, status="missing", reason="it has not been run yet")
    reason = record.reason
    if record.status == "diverged" and "last_finite_loss" in record.metrics:
        reason += f" (last finite training loss {record.metrics['last_finite_loss']:.4g})"
    return Run(variant=variant, seed=seed, run_id=run_id, status=record.status, reason=reason, record=record)


def _metric(values: Mapping[int, float], confidence: float) -> Metric:
    numbers = list(values.values())
    mean, sd = mean_and_sd(numbers)
    low, high = (None, None) if len(numbers) < 2 else mean_interval(numbers, confidence)[1:]
    return Metric(
        values=dict(values),
        mean=mean,
        sd=sd if len(numbers) > 1 else None,
        low=low,
        high=high,
        median=statistics.median(numbers),
        minimum=min(numbers),
        maximum=max(numbers),
    )


def _kinds(maps: Sequence[Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    names = sorted({name for each in maps for name in each})
    return {name: tuple(sorted({each[name] for each in maps if name in each})) for name in names}


def _noise(variants: Sequence[VariantResult]) -> tuple[NoiseFloor | None, str]:
    groups = {v.name: list(v.metrics[LOSS].values.values()) for v in variants if LOSS in v.metrics}
    try:
        return noise_floor(groups), ""
    except ValueError as error:
        return None, str(error)


def _comparison(
    reference: VariantResult, other: VariantResult, at: str, facts: Plan, noise: NoiseFloor | None,
    breaks: Sequence[PairingBreak], n_effects: int,
) -> Comparison:  # fmt: skip
    on, off = _sides(reference, other, facts)
    changes = _changes(on, off, facts)
    pairing = next((f"seed {b.seed}: {b.fault}" for b in breaks if b.variant in (on.name, off.name)), "")
    name = _name(changes, other.name, at)

    def effect(metric: str) -> Effect:
        return _effect(on, off, metric, name, facts, n_effects, pairing_ok=not pairing)

    sets = {n for v in (on, off) for n in v.metrics if n.endswith(f"_{LOSS}")}
    loss = effect(LOSS)
    speed, speed_reason, evidence = _speed(on, off, facts, name)
    x, y = _values(on, LOSS), _values(off, LOSS)
    both = {seed: (a, b) for seed in x if (a := x[seed]) is not None and (b := y.get(seed)) is not None}
    pair_sd, pair_df = (loss.sd, loss.df) if not pairing else (None, None)
    if pair_sd is None and noise is not None:
        pair_sd, pair_df = noise.sd * 2**0.5, noise.df
    ends = sd_ends(pair_sd, pair_df, facts.interval_confidence) if pair_sd and pair_df else None
    return Comparison(
        variant=other.name,
        with_variant=on.name,
        without_variant=off.name,
        changes=changes,
        at=at,
        loss=loss,
        other_sets={n.removesuffix(f"_{LOSS}"): effect(n) for n in sorted(sets)},
        speed=speed,
        speed_reason=speed_reason,
        speed_evidence=evidence,
        pairing_ok=not pairing,
        pairing_reason=pairing,
        differences={seed: a - b for seed, (a, b) in both.items()},
        pairing_gain=None if pairing else pairing_gain(list(both.values())),
        pair_s=on.run_s + off.run_s if on.run_s is not None and off.run_s is not None else None,
        target_seeds=_planned_seeds(TARGET_NATS, pair_sd, facts),
        margin_seeds=_planned_seeds(0.0, pair_sd, facts),
        pair_sd_ends=ends,
        most_target_seeds=_planned_seeds(TARGET_NATS, ends[1] if ends else None, facts),
        most_margin_seeds=_planned_seeds(0.0, ends[1] if ends else None, facts),
    )


def _effect(
    on: VariantResult, off: VariantResult, metric: str, name: str, facts: Plan, n_effects: int, *, pairing_ok: bool
) -> Effect:
    """With minus without; what is still needed is counted at the level that Holm asks of the clearest effect."""
    at = partial(
        compare_pairs, _values(on, metric), _values(off, metric), name=name, unit="nats per token",
        margin=facts.margin_nats, pairing_ok=pairing_ok,
    )  # fmt: skip
    found = at(confidence=facts.interval_confidence)
    strict = at(confidence=1 - (1 - facts.interval_confidence) / n_effects)
    return replace(
        found,
        seeds_to_resolve=strict.seeds_to_resolve,
        runs_to_resolve=strict.runs_to_resolve,
        reason=found.reason and (_lost_runs(on, off) or found.reason),
    )


def _name(changes: Sequence[Change], variant: str, at: str) -> str:
    found = " + ".join(change.name for change in changes if not change.forced) or variant
    return f"{found} at {at}" if at else found


def _sides(reference: VariantResult, other: VariantResult, facts: Plan) -> tuple[VariantResult, VariantResult]:
    """(with, without): the reference is the side with, unless the other variant only adds to it.

    A level of a factor is the side with, and the factor's reference level the side without.
    """
    pairs = {name: (reference.planned.levels.get(name), level) for name, level in other.planned.levels.items()}
    if any(before != level for f in facts.factors for before, level in (pairs[f.name],)):
        return other, reference
    added = any(level == ON != before for before, level in pairs.values())
    removed = any(before == ON != level for before, level in pairs.values())
    return (other, reference) if added and not removed else (reference, other)


def _changes(on: VariantResult, off: VariantResult, facts: Plan) -> tuple[Change, ...]:
    """In the order of the registry: prerequisites first, then factors and components that this program does not know.

    What a factor sets goes with it, as what requires a component goes with that.
    """
    differing = [name for name, level in on.planned.levels.items() if off.planned.levels.get(name) != level]
    moved = {name for f in facts.factors if f.name in differing for name in f.components if name != f.name}
    return tuple(
        Change(
            component=name,
            with_level=on.planned.levels[name],
            without_level=off.planned.levels.get(name, ""),
            forced=name in moved
            or any(
                r in differing and not component(r).keeps_dependants(off.planned.levels.get(r, ON))
                for r in _requirements(name)
            ),
        )
        for name in sorted(differing, key=registry_order)
    )


def registry_order(name: str) -> tuple[int, str]:
    """A sorting key for components: the plan's file has them by name."""
    return (NAMES.index(name) if name in NAMES else len(NAMES), name)


def _requirements(name: str) -> tuple[str, ...]:
    return component(name).requires if name in NAMES else ()


def _values(variant: VariantResult, metric: str) -> dict[int, float | None]:
    found = variant.metrics[metric].values if metric in variant.metrics else {}
    return {run.seed: found.get(run.seed) for run in variant.runs}


def _lost_runs(on: VariantResult, off: VariantResult) -> str:
    """The runs that a comparison lacks, by the names of the tables."""
    return listed(
        f"seed {run.seed} of {run.variant} {'is missing' if run.status == 'missing' else run.status}"
        for run in (*on.runs, *off.runs)
        if run.status != "finished"
    )


def _speed(on: VariantResult, off: VariantResult, facts: Plan, name: str) -> tuple[Effect | None, str, tuple[str, ...]]:
    """Effect on ln tokens per second, why there is none, and the kinds of evidence behind it."""
    kinds = on.evidence.get("speed", ()), off.evidence.get("speed", ())
    both = tuple(sorted({*kinds[0], *kinds[1]}))
    if SPEED not in on.metrics or SPEED not in off.metrics:
        return None, "one of the two variants has no measured speed", both
    if kinds[0] != kinds[1]:
        said = f"{on.name} is {' and '.join(kinds[0]) or 'unknown'}, {off.name} {' and '.join(kinds[1]) or 'unknown'}"
        return None, f"their speeds are of different kinds ({said}) and are not compared", both
    logs = [{seed: math.log(v) if v else None for seed, v in _values(variant, SPEED).items()} for variant in (on, off)]
    effect = compare_pairs(
        *logs,
        name=name,
        unit="ln tokens/s",
        margin=SPEED_MARGIN,
        confidence=facts.interval_confidence,
        lower_is_better=False,
    )
    return replace(effect, reason=effect.reason and (_lost_runs(on, off) or effect.reason)), "", both


def _planned_seeds(difference: float, sd: float | None, facts: Plan) -> int | None:
    if sd is None:
        return None
    try:
        return seeds_needed(difference, sd, margin=facts.margin_nats, confidence=facts.interval_confidence)
    except ValueError:
        return None
