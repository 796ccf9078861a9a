"""Whether runs that were matched in seconds took the seconds of their budget."""

from __future__ import annotations

from collections.abc import Iterator

from ablate.attribution.study.compare import Run, StudyResult
from ablate.quantities import duration, listed, percent, plural
from ablate.report.cleaning import clean

TOLERANCE = 0.1  # of the budget
MAX_NAMED = 4


def share_of_budget(run: Run, result: StudyResult) -> float | None:
    """Seconds of a finished run's optimizer steps over those it was given; None if unknown or not matched."""
    if result.plan.match != "seconds" or run.record is None or run.status != "finished":
        return None
    seconds = run.record.metrics.get("training_s")
    return None if seconds is None else seconds / result.plan.budget


def missed_budget(result: StudyResult) -> Iterator[str]:
    """A warning if runs took more or less time than they were given, or nothing says how much they took."""
    if result.plan.match != "seconds":
        return
    given = duration(result.plan.budget)
    finished = [run for run in result.runs if run.status == "finished"]
    shares = [(run, share) for run in finished if (share := share_of_budget(run, result)) is not None]
    missed = sorted((found for found in shares if abs(found[1] - 1) > TOLERANCE), key=lambda found: -abs(found[1] - 1))
    if missed:
        named = [f"{clean(run.variant)} seed {run.seed} {percent(share, 3)}" for run, share in missed[:MAX_NAMED]]
        more = [f"{plural(len(missed) - MAX_NAMED, 'other')}"] if len(missed) > MAX_NAMED else []
        yield (
            f"{len(missed)} of {plural(len(finished), 'run')} trained more than {percent(TOLERANCE)} longer or shorter "
            f"than the {given} that all were to have equal: {listed([*named, *more])} of it. The steps were planned "
            "from the speed before the runs; repeat the study on a machine that does nothing else"
        )
    if len(shares) < len(finished):
        yield (
            f"{plural(len(finished) - len(shares), 'run')} of an earlier version of the program did not record the "
            f"seconds of training, so that the equal {given} cannot be checked for them"
        )
