"""A study of any kind, from its file to its records: a plain one, one with tuned learning rates, or a search."""

from __future__ import annotations

from ablate.runs.study import Study
from ablate.sweep.rounds import run_to_end
from ablate.sweep.run import Display, Options, StudyRun
from ablate.sweep.search.conduct import run_search
from ablate.sweep.tuned import run_tuned


def conduct(study: Study, options: Options, display: Display) -> StudyRun:
    """Run what of a study has no record yet. ValueError for whatever makes it impossible, before anything is spent."""
    if study.search is not None and options.cluster:
        raise ValueError(
            "a search is worked on by the machines that its command is given on, any number at once, and not through a "
            "queue; leave --executor out, and give the command in jobs of your own with one --out"
        )
    if study.search is not None:
        return run_search(study, options, display)
    if study.learning_rates == "tuned":
        return run_tuned(study, options, display)
    return run_to_end(study, options, display)
