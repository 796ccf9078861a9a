"""What a run's ranks did, as a file beside its record: asked for by the job, which keeps its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ablate.cluster.measured import measure
from ablate.parallel.layout import schedule_of
from ablate.runs.conduct import execute_all
from ablate.runs.executors.local import LocalExecutor
from ablate.runs.job import Job
from ablate.runs.job_file import read_job, write_job
from ablate.runs.store import Store
from ablate.runs.timelines import read_timeline
from ablate.spec.ranks import Ranks

MakeJob = Callable[..., Job]


def test_a_job_says_how_many_steps_are_recorded_and_its_run_keeps_its_name(make_job: MakeJob, tmp_path: Path) -> None:
    job = replace(make_job(ranks=Ranks(data=2), micro_batch_size=2), timeline=3)
    assert read_job(write_job(job, tmp_path)).timeline == 3
    assert job.run_id == make_job(ranks=Ranks(data=2), micro_batch_size=2).run_id


@pytest.mark.slow
def test_a_run_on_ranks_leaves_its_timeline_beside_its_record(make_job: MakeJob, tmp_path: Path) -> None:
    job = replace(make_job("distill", n_steps=12, ranks=Ranks(data=2), micro_batch_size=2), timeline=2)
    store = Store(tmp_path)
    store.create()
    outcome = execute_all([job], store, LocalExecutor(store, 1), listener=lambda event: None)
    assert outcome.status == {job.run_id: "finished"}
    timeline = read_timeline(store.timeline_file(job.run_id))
    assert [step.number for step in timeline.steps] == [5, 6]
    assert (timeline.n_ranks, timeline.n_data_ranks) == (2, 2)
    found = measure(timeline, schedule_of(job.run.trainer))
    assert found.peak_live_chunks == (1,)
    assert found.closed_form_s == 0
