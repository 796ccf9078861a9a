"""A search and what its trials came to: states and objectives from the records, the Pareto front, the best of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ablate.runs.record import RunRecord
from ablate.runs.searching import MAXIMISED, Objective
from ablate.runs.store import Store
from ablate.runs.trials import SearchPlan, Trial, TrialFolder

TrialState = Literal["complete", "pruned", "diverged", "failed", "open"]
STATES: tuple[TrialState, ...] = ("complete", "pruned", "diverged", "failed", "open")
METRICS = {
    "loss": "nats_per_token",
    "seconds": "training_s",
    "tokens_per_s": "tokens_per_s",
    "memory": "peak_memory_bytes",
}
UNITS = {"loss": "nats/token", "seconds": "s of training", "tokens_per_s": "tokens/s", "memory": "bytes",
         "flops_per_token": "FLOP/token"}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """A trial, and what became of it so far."""

    trial: Trial
    state: TrialState
    values: tuple[float, ...] = ()  # of the objectives, in their order; complete trials have them
    losses: Mapping[float, float] = field(
        default_factory=dict
    )  # share of the budget -> loss of the run that ended there
    record: RunRecord | None = None  # of its last run that has one
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """A search with all its trials, in the order of their slots."""

    plan: SearchPlan
    trials: tuple[TrialResult, ...]

    def of(self, group: str) -> tuple[TrialResult, ...]:
        return tuple(found for found in self.trials if found.trial.group == group)

    def counts(self, group: str) -> dict[TrialState, int]:
        """Trials of a group by state."""
        return {state: sum(found.state == state for found in self.of(group)) for state in STATES}

    @property
    def ended(self) -> bool:
        """Whether every trial that was planned has ended."""
        n = sum(found.state != "open" for found in self.trials)
        return n == self.plan.n_trials * len(self.plan.groups)

    @property
    def equal(self) -> bool:
        """Whether every group has had the same number of trials, whatever became of them."""
        return len({sum(n for state, n in self.counts(g).items() if state != "open") for g in self.plan.groups}) == 1


def read_search(folder: TrialFolder, read: Callable[[str], RunRecord | None] | None = None) -> SearchResult:
    """The search in a folder. ValueError if there is none, or a file of it is damaged.

    `read`: run id -> its record, where somebody keeps them.
    """
    store = Store(folder.folder)
    read = read or store.read
    failures = {failure.run_id: failure.reason for failure in store.failures()}
    plan = folder.plan()
    results = [trial_result(trial, plan.objectives, read, folder.pruned(trial.slot), failures) for trial in folder]
    order = {slot: i for i, (slot, _, _) in enumerate(plan.slots())}
    return SearchResult(plan=plan, trials=tuple(sorted(results, key=lambda found: order[found.trial.slot])))


def trial_result(
    trial: Trial,
    objectives: Sequence[Objective],
    read: Callable[[str], RunRecord | None],
    pruned: float | None,
    failures: Mapping[str, str],
) -> TrialResult:
    """What the records say of a trial; `failures`: run id -> why its last attempt ended without a record."""
    losses: dict[float, float] = {}
    record = None
    for stage in trial.stages:
        found = read(stage.run_id)
        if found is None:
            reason = failures.get(stage.run_id, "")
            state: TrialState = "failed" if reason else "open"
            return TrialResult(trial=trial, state=state, losses=losses, record=record, reason=reason)
        record = found
        if record.status == "diverged":
            return TrialResult(trial=trial, state="diverged", losses=losses, record=record, reason=record.reason)
        losses[stage.share] = record.metrics[METRICS["loss"]]
        if pruned == stage.share and stage.share < 1:
            return TrialResult(trial=trial, state="pruned", losses=losses, record=record)
    assert record is not None
    values = tuple(value_of(name, trial, record) for name in objectives)
    return TrialResult(trial=trial, state="complete", values=values, losses=losses, record=record)


def value_of(objective: Objective, trial: Trial, record: RunRecord) -> float:
    """What a finished run reached, in UNITS. ValueError where its record does not have the figure."""
    if objective == "flops_per_token":
        return trial.flops_per_token
    metric = METRICS[objective]
    if metric not in record.metrics:
        raise ValueError(
            f"run {record.run_id} of trial {trial.slot} has no {metric} (it was resumed at its very end); search "
            f"without the objective {objective}, or move its record away: the run is then made anew"
        )
    return record.metrics[metric]


def pareto_front(found: Sequence[TrialResult], objectives: Sequence[Objective]) -> list[TrialResult]:
    """The complete trials that no other is at least as good as in every objective and better in one, best first."""
    complete = [(one, _lower_is_better(one, objectives)) for one in found if one.state == "complete"]
    front = [
        (values, one)
        for one, values in complete
        if not any(other != values and all(a <= b for a, b in zip(other, values, strict=True)) for _, other in complete)
    ]
    # Equal runs are one: two trials with the same run stand once.
    kept = {one.trial.stages[-1].run_id: (values, one) for values, one in reversed(front)}
    return [one for _, one in sorted(kept.values(), key=lambda pair: (pair[0], pair[1].trial.slot))]


def best(found: Sequence[TrialResult], objectives: Sequence[Objective]) -> TrialResult | None:
    """The complete trial that is the best in the first objective; the earliest of equal ones."""
    complete = [one for one in found if one.state == "complete"]
    return min(complete, key=lambda one: (_lower_is_better(one, objectives)[0], one.trial.number), default=None)


def _lower_is_better(found: TrialResult, objectives: Sequence[Objective]) -> tuple[float, ...]:
    return tuple(-value if name in MAXIMISED else value for name, value in zip(objectives, found.values, strict=True))
