"""A whole run on kernels: trained, evaluated and recorded like any other, and the record says what ran."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablate.runs.execute import execute
from ablate.runs.job import Job
from ablate.runs.record import RunRecord, pairing_fault
from ablate.runs.store import Store
from ablate.spec.decoding import run_id
from ablate.spec.machine import c_compiler, this_machine
from ablate.spec.model import ModelSpec

MakeJob = Callable[..., Job]
SLOTS = ("attention", "feed_forward", "balance", "linear", "norm", "head")


def finish(job: Job, folder: Path) -> RunRecord:
    store = Store(folder)
    store.create()
    record = execute(job, store, lambda *_: True)
    assert record is not None
    return record


def on_kernels(job: Job) -> Job:
    model: ModelSpec = job.run.model.with_backends(dict.fromkeys(SLOTS, "triton"))
    run = replace(job.run, model=model.for_machine(this_machine(), "float32"))
    return replace(job, run=run, run_id=run_id(run))


@pytest.fixture(scope="module")
def records(make_job: MakeJob, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, RunRecord]:
    """Two steps, by libraries and by kernels."""
    sizes: dict[str, Any] = {"sequence_length": 12, "batch_size": 1, "micro_batch_size": 1, "n_evaluations": 1}
    job = make_job(n_steps=2, n_held_out_windows=1, **sizes)
    folder = tmp_path_factory.mktemp("study")
    return finish(job, folder), finish(on_kernels(job), folder)


def test_the_record_says_what_ran(records: tuple[RunRecord, RunRecord]) -> None:
    library, kernels = records
    ours = "compiled" if c_compiler() else "library"
    assert {slot: library.backends[slot] for slot in SLOTS} == {
        "attention": "library",
        "feed_forward": ours,
        "balance": "library",
        "linear": "compiled" if c_compiler() else "emulated",
        "norm": ours,
        "head": ours,
    }
    assert {kernels.backends[slot] for slot in SLOTS} == {"triton"}
    assert library.run_id != kernels.run_id, "a run's name has what ran it"
    assert library.evidence["speed"] == "emulated"
    assert kernels.evidence["speed"] == "measured"


def test_both_train_the_same_model(records: tuple[RunRecord, RunRecord]) -> None:
    library, kernels = records
    assert kernels.status == "finished"
    assert not pairing_fault(library, kernels)
    assert kernels.initial_parameters == library.initial_parameters
    assert kernels.metrics["nats_per_token"] == pytest.approx(library.metrics["nats_per_token"], rel=1e-3)
    assert kernels.final_parameters_hash != library.final_parameters_hash


def test_auto_and_its_choice_are_one_run(make_job: MakeJob) -> None:
    job = make_job()
    assert run_id(job.run) == run_id(replace(job.run, model=job.run.model.for_machine(this_machine(), "float32")))
