"""Branches: finished models on the way, which are those of shorter runs and leave the trunk as it was."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablate.runs.execute import execute
from ablate.runs.job import Job
from ablate.runs.record import RunRecord
from ablate.runs.store import Store
from ablate.spec.decoding import run_id
from ablate.training.callbacks import Clock, Interrupted

MakeJob = Callable[..., Job]
PARTS: dict[str, Any] = {"branches": (), "n_evaluations": 2, "decay_share": 0.2, "warmup_share": 0.05}


def finish(job: Job, folder: Path, stop: Callable[[], bool] = lambda: False) -> RunRecord:
    store = Store(folder)
    store.create()
    return execute(job, store, lambda *_: None, stop)


@pytest.fixture(scope="module")
def branched(make_job: MakeJob, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    job = make_job(n_steps=20, **PARTS | {"branches": (0.25, 0.5)})
    return finish(job, tmp_path_factory.mktemp("branched"))


def test_branches_leave_the_trunk_as_it_was(branched: RunRecord, make_job: MakeJob, tmp_path: Path) -> None:
    plain = finish(make_job(n_steps=20, **PARTS), tmp_path)
    assert branched.run_id != plain.run_id
    assert branched.final_parameters_hash == plain.final_parameters_hash
    assert [p["nats_per_token"] for p in branched.curve] == [p["nats_per_token"] for p in plain.curve]
    assert plain.branches == ()


def test_a_branch_is_the_shorter_run(branched: RunRecord, make_job: MakeJob, tmp_path: Path) -> None:
    assert [point["step"] for point in branched.branches] == [5, 10]
    alone = finish(make_job(n_steps=10, n_warmup_steps=branched.spec["n_warmup_steps"], **PARTS), tmp_path)
    for name in ("nats_per_token", "bits_per_byte", "n_tokens", "learning_rate"):
        assert branched.branches[1][name] == alone.metrics[name]
    assert branched.branches[1]["nats_per_token"] != branched.curve[0]["nats_per_token"]  # at the same step, undecayed


def test_a_run_that_is_stopped_anywhere_has_the_same_branches(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(n_steps=12, **PARTS | {"branches": (0.5,), "decay_share": 0.34})
    whole = finish(job, tmp_path / "whole")
    # Trunk up to step 4, two steps of the branch, eight more of the trunk: the stop is asked for after each of 13.
    for after in (2, 4, 5, 8):
        calls = iter(range(100))
        with pytest.raises(Interrupted):
            finish(job, tmp_path / str(after), lambda calls=calls, after=after: next(calls) == after)
        again = finish(job, tmp_path / str(after))
        assert again.final_parameters_hash == whole.final_parameters_hash
        assert again.branches == whole.branches
        assert not list(tmp_path.rglob("*step-*"))


def test_steps_that_are_told_only_grow(make_job: MakeJob, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("ablate.training.callbacks.TELL_EVERY_S", 0.0)
    job, told = make_job(n_steps=20, **PARTS | {"branches": (0.25, 0.5)}), []
    store = Store(tmp_path)
    store.create()
    execute(job, store, lambda step, *_: told.append(step))
    assert told == sorted(told)
    assert max(told) in (22, 23)
    assert job.run.n_branch_steps == 3


def test_branches_that_cannot_be_are_refused(make_job: MakeJob) -> None:
    for branches, said in (
        ((0.5, 0.25), "increasing shares"),
        ((1.0,), "increasing shares"),
        ((0.05,), "warm-up ends"),
    ):
        with pytest.raises(ValueError, match=said):
            make_job(**PARTS | {"branches": branches})


def test_a_run_too_short_for_a_branch_has_none(make_job: MakeJob) -> None:
    run = make_job(n_steps=3, **PARTS | {"branches": (0.25,)}).run
    assert run.branch_runs == ()
    assert run_id(run) != run_id(replace(run, trainer=replace(run.trainer, branches=())))


def test_seconds_before_a_branch_count_once_in_the_trunk_that_goes_on() -> None:
    clock = Clock(tokens_per_step=1)
    clock.load_state_dict({"training_s": 10.0})  # an earlier attempt's
    clock.step_s.extend([1.0, 2.0])
    clock.load_state_dict(clock.state_dict())  # as a trunk does that goes on from its own checkpoint
    clock.step_s.append(4.0)
    assert clock.training_s == 17.0
