"""Tables of a search: what was tried and what came of it, the best of each, the Pareto front, every trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ablate.attribution.estimation.pairs import compare_pairs
from ablate.attribution.study.compare import LOSS, StudyResult
from ablate.attribution.study.search import UNITS, SearchResult, TrialResult, best, pareto_front, read_search
from ablate.attribution.verdicts import Effect
from ablate.quantities import (
    NONE,
    listed,
    memory,
    number,
    percent,
    plural,
    scaled,
    short,
    signed,
    signed_between,
    significant,
    whole,
)
from ablate.report.cleaning import clean
from ablate.report.tables.table import Columns, Table, make, text
from ablate.runs.searching import MAXIMISED, Objective, Value
from ablate.runs.trials import TrialFolder

FOLDER = "search"  # in that of the study
WHOLE = ("whole",)


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSection:
    """What a report says of a search; `found` is what the figures draw."""

    found: SearchResult
    groups: Table
    front: Table  # of a search by several objectives
    confirmed: Table  # of a search over the whole: what was found, against the reference
    trials: Table
    notes: tuple[str, ...]


def search(folder: Path, result: StudyResult) -> SearchSection | None:
    """The section of a study that searched; None for another. ValueError if a file of the search is damaged."""
    place = TrialFolder(folder / FOLDER)
    if not place.plan_file.is_file():
        return None
    found = read_search(place)
    confirmed = {v.name: v.metrics[LOSS].mean for v in result.variants if LOSS in v.metrics}
    return SearchSection(
        found=found,
        groups=_groups(found, confirmed),
        front=_front(found),
        confirmed=_confirmed(found, result),
        trials=_trials(found),
        notes=tuple(_notes(found, result)),
    )


def objective(name: Objective, value: float) -> str:
    """A value of an objective with its unit."""
    if name == "loss":
        return number(value)
    if name == "memory":
        return memory(value)
    if name == "flops_per_token":
        return scaled(value, "FLOP")
    return whole(value) if name == "tokens_per_s" else f"{significant(value)} s"


def settings(parameters: Mapping[str, Value]) -> str:
    """The parameters of a trial in one line, without the section where the field's own name says enough."""
    shown = {name.rpartition(".")[2] if _once(name, parameters) else name: value for name, value in parameters.items()}
    return ", ".join(f"{name} {_value(value)}" for name, value in shown.items())


def _once(name: str, parameters: Mapping[str, Value]) -> bool:
    return sum(other.rpartition(".")[2] == name.rpartition(".")[2] for other in parameters) == 1


def _value(value: Value) -> str:
    return short(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _groups(found: SearchResult, confirmed: Mapping[str, float]) -> Table:
    objectives = found.plan.objectives
    rows = []
    for group in found.plan.groups:
        counts = found.counts(group)
        winner = best(found.of(group), objectives)
        values = objective(objectives[0], winner.values[0]) if winner else NONE
        again = confirmed.get(group) if objectives[0] == "loss" else None
        ended = (str(counts[state]) for state in ("complete", "pruned", "diverged", "failed"))
        chosen = settings(winner.trial.parameters) if winner else NONE
        rows.append([group, str(sum(counts.values())), *ended, chosen, values, number(again)])
    columns: Columns = [text("Variant"), "Trials", "Complete", "Pruned", "Diverged", "Failed", text("Best settings"),
                        f"Their {objectives[0]} in the search", "Loss on fresh seeds"]  # fmt: skip
    note = (
        "The best of several is the best partly by luck: its figure in the search is too good, and no effect is taken "
        "from it."
    )
    return make("What the search found", columns, rows, note)


def _front(found: SearchResult) -> Table:
    objectives = found.plan.objectives
    front = pareto_front(found.trials, objectives) if len(objectives) > 1 else []
    columns: Columns = [text("Variant"), text("Settings"), *(f"{name}, {UNITS[name]}" for name in objectives), "Trial"]
    rows = [
        [one.trial.variant, settings(own_settings(one)), *map(objective, objectives, one.values), one.trial.slot]
        for one in front
    ]
    better = "; ".join(f"{name}: {'more' if name in MAXIMISED else 'less'} is better" for name in objectives)
    note = (
        f"No trial is at least as good as one of these in everything and better in something ({better}). One seed each."
    )
    return make("Pareto front", columns, rows, note)


def _confirmed(found: SearchResult, result: StudyResult) -> Table:
    """The chosen settings on fresh seeds, each beside the reference at the preset's; a variant's effect this is not."""
    rows = []
    if found.plan.groups == WHOLE and all(LOSS in v.metrics for v in result.variants):
        reference, *others = result.variants
        rows.append(
            [reference.name, number(reference.metrics[LOSS].mean), NONE, NONE, "", str(len(reference.finished))]
        )
        for v in others:
            effect = beside(result, v.name)
            rows.append([v.name, number(v.metrics[LOSS].mean), signed(effect.estimate),
                         signed_between(effect.low, effect.high), effect.verdict, str(len(v.finished))])  # fmt: skip
    columns: Columns = [text("What was found"), "Loss, nats/token", "Minus the reference", "Interval", text("Verdict"),
                        "Seeds"]  # fmt: skip
    note = (
        f"Fresh seeds, {percent(result.plan.interval_confidence)} intervals; below zero it is better than the "
        "reference at the preset's settings. The difference is that of the variant and of its settings together."
    )
    return make("The winners on fresh seeds", columns, rows, note)


def beside(result: StudyResult, name: str) -> Effect:
    """The loss of a variant minus that of the reference."""
    reference, other = result.variants[0], next(v for v in result.variants if v.name == name)
    broken = {found.variant for found in result.pairing_breaks} & {reference.name, name}
    return compare_pairs(
        dict(other.metrics[LOSS].values), dict(reference.metrics[LOSS].values), name=name, unit="nats per token",
        margin=result.plan.margin_nats, confidence=result.plan.interval_confidence, pairing_ok=not broken,
    )  # fmt: skip


def winner(section: SearchSection, result: StudyResult) -> tuple[str, ...]:
    """The answer of a search over the whole, which compares no components; empty for another."""
    if section.found.plan.groups != WHOLE:
        return ()
    front = pareto_front(section.found.trials, section.found.plan.objectives)
    if not front or len(result.variants) < 2 or not all(LOSS in v.metrics for v in result.variants):
        return ("The search has no complete trial yet that was run again.",)
    plan, first = section.found.plan, result.variants[1]
    at = objective(plan.objectives[0], front[0].values[0])
    effect = beside(result, first.name)
    more = f", the first of {plural(len(front), 'point')} on the Pareto front" if len(plan.objectives) > 1 else ""
    return (
        f"Best by {plan.objectives[0]} of {plural(len(section.found.trials), 'trial')}: "
        f"{clean(front[0].trial.variant)} with {settings(own_settings(front[0]))} "
        f"({at} in the search{more}).",
        f"On fresh seeds it has {number(first.metrics[LOSS].mean)} nats per token, {signed(effect.estimate)} beside "
        f"{clean(result.variants[0].name)} at the preset's settings ({signed_between(effect.low, effect.high)}): "
        f"{effect.verdict}.",
    )


def own_settings(one: TrialResult) -> dict[str, Value]:
    """The parameters of a trial but for the variant, which has a name of its own."""
    return {name: value for name, value in one.trial.parameters.items() if name != "variant"}


def _trials(found: SearchResult) -> Table:
    objectives = found.plan.objectives
    rows = []
    for one in found.trials:
        values = map(objective, objectives, one.values) if one.values else [NONE] * len(objectives)
        run = one.record.run_id if one.record else one.trial.stages[-1].run_id
        tried = settings(own_settings(one))
        rows.append([one.trial.slot, one.trial.variant, tried, one.trial.origin, _state(one), *values, run])
    columns: Columns = [text("Trial"), text("Variant"), text("Settings"), text("Proposed by"), text("State"),
                        *objectives, text("Run")]  # fmt: skip
    return make("Every trial", columns, rows)


def _state(one: TrialResult) -> str:
    if one.state == "pruned":
        return f"pruned at {percent(max(one.losses))}: loss {number(one.losses[max(one.losses)])}"
    return f"{one.state}: {one.reason}" if one.reason else one.state


def _notes(found: SearchResult, result: StudyResult) -> list[str]:
    plan = found.plan
    per = "of each variant" if plan.groups != WHOLE else "in all, the variant being one of the parameters"
    judged = listed(plan.objectives)
    said = [f"{plural(plan.n_trials, 'trial')} {per}, by {plan.sampler}, on seed {plan.seed}, judged by {judged}."]
    if plan.groups == WHOLE:
        said.append("Variants had unequal numbers of trials, so no effect of a component can be read from the search.")
    elif found.equal and found.ended:
        said.append("Every variant had the same number of trials, those that were pruned, diverged or failed included.")
    else:
        said.append("The trials of some variants have not ended: the numbers are not equal yet.")
    warm = sum(one.trial.origin.startswith("best of") for one in found.trials)
    if warm:
        said.append(f"{plural(warm, 'trial')} tried the best settings of another variant.")
    if plan.pruner != "none":
        said.append(
            "A trial is pruned against trials of its own variant alone, each judged by a run of its own that is "
            "decayed at that share of the budget; such runs cost their share on top."
        )
    same = len(found.trials) - len({one.trial.stages[-1].run_id for one in found.trials})
    if same:
        said.append(f"{plural(same, 'trial')} had the specification of another one and share its run.")
    if any(name in ("seconds", "tokens_per_s", "memory") for name in plan.objectives):
        kinds = [one.record.evidence.get("speed", "") for one in found.trials if one.record]
        said.append("Speed and memory are of this machine, with other runs beside; a trial measures them once.")
        if any("emulated" in kind for kind in kinds):
            said.append("Part of the arithmetic was emulated: speeds with and without it are not comparable.")
    fresh = ", ".join(str(seed) for seed in result.plan.seeds)
    said.append(f"The effects of this report are from fresh seeds ({fresh}), with the chosen settings run again.")
    said.append(
        "No importance of parameters is given: from so few trials such numbers rank by chance; the response curves "
        "show what there is."
    )
    return said
