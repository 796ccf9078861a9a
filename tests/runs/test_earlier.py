"""Runs go on from another study's checkpoints where nothing but their ranks differs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import processes
import pytest

from ablate.runs.conduct import execute_all
from ablate.runs.earlier import with_checkpoints_of
from ablate.runs.events import Event, Progress
from ablate.runs.executors.local import LocalExecutor
from ablate.runs.job import Job
from ablate.runs.job_file import read_job, write_job
from ablate.runs.store import Store
from ablate.spec.ranks import Ranks

MakeJob = Callable[..., Job]


def test_the_same_run_on_other_ranks_is_found_and_no_other(make_job: MakeJob, tmp_path: Path) -> None:
    wide, narrow = make_job(ranks=Ranks(data=2), micro_batch_size=2), make_job()
    assert wide.run_id != narrow.run_id
    write_job(wide, tmp_path / "runs" / wide.run_id)
    found, other = with_checkpoints_of([narrow, make_job(seed=1)], tmp_path)
    assert found.earlier == str(tmp_path / "runs" / wide.run_id / "attempts")
    assert other.earlier == ""
    assert read_job(write_job(found, tmp_path / "there")).earlier == found.earlier
    for different in (make_job(n_steps=13), make_job("mtp"), make_job(learning_rate=1e-3)):
        with pytest.raises(ValueError, match="differs from these in its ranks alone"):
            with_checkpoints_of([different], tmp_path)


@pytest.mark.slow
def test_a_run_that_was_stopped_on_two_ranks_ends_on_one(make_job: MakeJob, tmp_path: Path) -> None:

    there, here = Store(tmp_path / "there"), Store(tmp_path / "here")
    job = make_job("distill", n_steps=60, ranks=Ranks(data=2), micro_batch_size=2)

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and list(there.attempts_folder(job.run_id).glob("*/step-*/manifest.json")):
            os.kill(os.getpid(), signal.SIGTERM)

    for store in (there, here):
        store.create()
    assert execute_all([job], there, LocalExecutor(there, 1), listener=stop).interrupted
    assert not processes.workers(os.getpid())
    (again,) = with_checkpoints_of([make_job("distill", n_steps=60)], there.folder)
    outcome = execute_all([again], here, LocalExecutor(here, 1), listener=lambda event: None)
    assert outcome.status == {again.run_id: "finished"}
    record = here.read(again.run_id)
    assert record is not None
    assert "there/runs" in record.attempts[0]["went_on_from"]
    assert record.curve[0]["step"] == 15, "the points of the part that ran there"
