"""A study from its first run to its answer: round by round where its seeds depend on what was seen."""

from __future__ import annotations

from ablate.attribution.design.sequential import Look, look_at, planned_looks
from ablate.attribution.study.compare import StudyResult, compare
from ablate.attribution.verdicts import NOT_RESOLVED
from ablate.quantities import listed, percent
from ablate.runs.history import Entry, History, looks, plans
from ablate.runs.plan import Plan
from ablate.runs.store import Store
from ablate.runs.study import Study
from ablate.sweep.run import Display, Options, StudyRun, run_study
from ablate.sweep.seeds import is_open

NO_INTERVAL = "no interval"  # instead of a verdict: a run that it needs left no loss, and more seeds do not help


def run_to_end(study: Study, options: Options, display: Display) -> StudyRun:
    """Run a study until its seeds are those that were asked for, or a planned look has decided every effect.

    A pilot, a look and a stage each end a round; what was read is in the study's history before the next one begins, so
    that a study that is killed goes on, and nothing is read twice. ValueError as of `run_study`.
    """
    while True:
        done = run_study(study, options, display)
        if done.outcome is None or done.outcome.interrupted or "failed" in done.outcome.status.values():
            return done
        if not _goes_on(study, done, display):
            return done


def _goes_on(study: Study, done: StudyRun, display: Display) -> bool:
    """Read a round that has ended, if it is to be read; whether another one follows."""
    history = History(done.folder)
    entries = history.entries()
    last = plans(entries)[-1]
    if last.origin == "pilot":
        return True
    if last.origin != "look" or any(look.n_runs == last.n_runs for look in looks(entries)):
        return False
    store = Store(done.folder)
    result = compare(done.plan, list(store), store.failures())
    if any(run.record is None for run in result.runs):
        return False
    look = read(result, last)
    history.append(look)
    more = is_open(look) and _is_more_planned(study, done.plan, last)
    display.say(_said(look, result, more=more))
    return more


def read(result: StudyResult, planned: Entry) -> Entry:
    """A planned reading of finished runs: the verdict on each effect of the question, at the confidence of a look."""
    plan = result.plan
    if plan.design.name != "staged":
        together = 1 - (1 - plan.interval_confidence) * len(planned.looks)
        at: Look = look_at(planned_looks(planned.looks, confidence=together), len(plan.seeds))
        assert abs(at.confidence - plan.interval_confidence) < 1e-9
    return Entry(
        kind="look", n_runs=plan.n_runs, n_seeds=len(plan.seeds), stages=plan.design.stages,
        confidence=plan.interval_confidence, n_records=plan.n_runs, verdicts=verdicts(result), looks=planned.looks,
    )  # fmt: skip


def verdicts(result: StudyResult) -> dict[str, str]:
    """Effect -> what is said of it; NO_INTERVAL where nothing can be."""
    if result.comparisons:
        return {c.name: NO_INTERVAL if c.loss.low is None else c.loss.verdict for c in result.comparisons}
    found = result.attribution
    return {
        name: effect.verdict if effect.verdict_from else NO_INTERVAL
        for name, effect in (found.effects if found else {}).items()
    }


def _is_more_planned(study: Study, plan: Plan, last: Entry) -> bool:
    if study.design == "staged":
        return plan.n_runs < last.looks[-1]
    return len(plan.seeds) < last.looks[-1]


def _said(look: Entry, result: StudyResult, *, more: bool) -> str:
    open_ = [name for name, verdict in look.verdicts.items() if verdict == NOT_RESOLVED]
    decided = listed(f"{name} {verdict}" for name, verdict in look.verdicts.items() if verdict != NOT_RESOLVED)
    where = f"{len(result.plan.seeds)} seeds, {percent(look.confidence)} intervals"
    said = f"read at {where}: {decided or 'nothing decided'}"
    if open_:
        then = "so more runs follow" if more else "and no further look is planned"
        said += f"; {listed(open_)} not resolved, {then}"
    return said
