"""What was tuned or searched, as plain data for the JSON document."""

from __future__ import annotations

import dataclasses
from typing import Any

from ablate.attribution.study.compare import StudyResult
from ablate.attribution.study.search import STATES, TrialResult, best, pareto_front
from ablate.attribution.verdicts import Effect
from ablate.report.tables.search import WHOLE, SearchSection, beside
from ablate.report.tables.tuning import TuningSection


def tuning_document(section: TuningSection | None) -> dict[str, Any] | None:
    """Rates of every variant, what they were read from, and effects (nats per token) at the shared and own rates."""
    if section is None:
        return None
    found = section.found
    return {
        "shared_rate": found.shared_rate,
        "range_octaves": list(found.used),
        "rates": {
            name: {"learning_rate": rate, "octaves": found.octaves[name], "held_at_an_end": name in found.clipped}
            for name, rate in found.rates.items()
        },
        "screening": [
            {"variant": response.variant, "level": response.level}
            | {"points": [dataclasses.asdict(point) for point in response.points]}
            for response in found.responses
        ],
        "effects": [
            {"name": each.name, "variant": each.variant, "shared": effect(each.shared), "own": effect(each.own)}
            for each in section.effects
        ],
        "notes": list(section.notes),
    }


def search_document(section: SearchSection | None, result: StudyResult) -> dict[str, Any] | None:
    """The search's plan, its trials, the best of each group, the Pareto front, and the winners on fresh seeds."""
    if section is None:
        return None
    found, plan = section.found, section.found.plan
    winners = {group: best(found.of(group), plan.objectives) for group in plan.groups}
    front = pareto_front(found.trials, plan.objectives) if len(plan.objectives) > 1 else []
    others = result.variants[1:] if plan.groups == WHOLE else ()
    return {
        "sampler": plan.sampler,
        "pruner": plan.pruner,
        "objectives": list(plan.objectives),
        "seed": plan.seed,
        "budget": plan.budget,
        "trials_of_each": plan.n_trials,
        "groups": {
            group: {"best": None if winner is None else winner.trial.slot}
            | {state: found.counts(group)[state] for state in STATES}
            for group, winner in winners.items()
        },
        "pareto_front": [one.trial.slot for one in front],
        "trials": [_trial(one, plan.objectives) for one in found.trials],
        "confirmed": {v.name: effect(beside(result, v.name)) for v in others if v.finished},
        "notes": list(section.notes),
    }


def _trial(one: TrialResult, objectives: tuple[str, ...]) -> dict[str, Any]:
    trial = one.trial
    return {
        "slot": trial.slot,
        "group": trial.group,
        "variant": trial.variant,
        "parameters": dict(trial.parameters),
        "origin": trial.origin,
        "state": one.state,
        "values": dict(zip(objectives, one.values, strict=False)),
        "losses": {str(share): loss for share, loss in one.losses.items()},
        "run_id": one.record.run_id if one.record else trial.stages[-1].run_id,
        "reason": one.reason,
    }


def effect(found: Effect | None) -> dict[str, Any] | None:
    """An effect without its name, which its place says."""
    if found is None:
        return None
    plain = dataclasses.asdict(found)
    del plain["name"]
    return plain
