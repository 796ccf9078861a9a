"""The local executor in one process: workers that are played, so that nothing sleeps and every end can be had."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ablate.errors import RunFailed
from ablate.runs.events import Ended, Event, Failed, Interrupted, Killed, Progress, Started, StepTime
from ablate.runs.executors import local, worker
from ablate.runs.job import Job
from ablate.runs.record import RunRecord
from ablate.runs.store import Store

MakeJob = Callable[..., Job]
Script = list[Any]  # what a worker sends before its pipe closes


class Connection:
    """A pipe's end whose other end has said everything already."""

    def __init__(self, script: Script) -> None:
        self.script = list(script)

    def recv(self) -> Any:
        if not self.script:
            raise EOFError
        return self.script.pop(0)

    def send(self, message: Any) -> None:
        self.script.append(message)

    def close(self) -> None:
        pass


class Context:
    """Processes that only have a script: the n-th process of a run plays the n-th of its scripts."""

    def __init__(self, scripts: dict[str, list[Script]]) -> None:
        self.scripts, self.started, self.terminated = scripts, list[str](), list[str]()
        self.alive = self.most_alive = 0

    def Pipe(self, duplex: bool) -> tuple[Connection, Connection]:
        self.connection = Connection([])
        return self.connection, self.connection

    def Process(self, target: Any, args: Any, name: str = "") -> Any:
        connection, identity = self.connection, name or args[0].run_id

        def start() -> None:
            self.started.append(identity)
            self.alive += 1
            self.most_alive = max(self.alive, self.most_alive)
            connection.script += self.scripts[identity].pop(0)

        def join() -> None:
            self.alive -= 1

        return SimpleNamespace(
            start=start, join=join, terminate=lambda: self.terminated.append(identity), exitcode=-9, name=identity
        )


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Execute jobs with scripts by run; returns the outcome, the events, the context and the store."""

    def run(jobs: Sequence[Job], scripts: dict[str, list[Script]], **options: Any) -> Any:
        context, events, store = Context(scripts), list[Event](), Store(tmp_path / "study")
        store.create()
        monkeypatch.setattr(local, "_context", lambda: context)
        monkeypatch.setattr(local, "wait", lambda connections, timeout: list(connections))
        listener = options.pop("listener", events.append)
        outcome = local.execute_all(jobs, store, n_parallel=options.pop("n_parallel", 1), listener=listener)
        return SimpleNamespace(outcome=outcome, events=events, context=context, store=store)

    return run


@pytest.fixture
def jobs(make_job: MakeJob) -> list[Job]:
    first = make_job()
    return [first, replace(first, run=replace(first.run, seed=first.run.seed + 1))]


def test_events_are_told_in_order_and_statuses_kept(play: Any, jobs: list[Job]) -> None:
    a, b = (job.run_id for job in jobs)
    said = Progress(a, 3, 2.5, 100.0)
    done = play(jobs, {a: [[said, Ended(a, "finished")]], b: [[Ended(b, "diverged")]]})
    assert done.events == [Started(a), said, Ended(a, "finished"), Started(b), Ended(b, "diverged")]
    assert done.outcome.status == {a: "finished", b: "diverged"}
    assert not done.outcome.interrupted
    assert done.context.most_alive == 1


def test_no_more_run_at_once_than_were_asked_for(play: Any, jobs: list[Job]) -> None:
    scripts = {job.run_id: [[Ended(job.run_id, "finished")]] for job in jobs}
    assert play(jobs, scripts, n_parallel=2).context.most_alive == 2


def test_a_failure_is_noted_and_the_others_go_on(play: Any, jobs: list[Job]) -> None:
    a, b = (job.run_id for job in jobs)
    done = play(jobs, {a: [[Failed(a, "ValueError: no", "Traceback ...")]], b: [[Ended(b, "finished")]]})
    assert done.outcome.status == {a: "failed", b: "finished"}
    (failure,) = done.store.failures()
    assert (failure.run_id, failure.seed, failure.reason, failure.traceback) == (
        a,
        jobs[0].run.seed,
        "ValueError: no",
        "Traceback ...",
    )


def test_a_killed_process_is_started_again_and_given_up_after_three(play: Any, jobs: list[Job]) -> None:
    job = jobs[0]
    again = play([job], {job.run_id: [[], [], [Ended(job.run_id, "finished")]]})
    assert again.context.started == [job.run_id] * 3
    assert [type(event) for event in again.events] == [Started, Killed, Started, Killed, Started, Ended]
    assert again.store.failures() == []
    lost = play([job], {job.run_id: [[], [], []]})
    assert lost.outcome.status == {job.run_id: "failed"}
    assert "3 times" in lost.store.failures()[0].reason


def test_a_run_with_a_record_is_not_started(play: Any, jobs: list[Job], tmp_path: Path) -> None:
    job = jobs[0]
    store = Store(tmp_path / "study")
    store.create()
    store.commit(RunRecord(run_id=job.run_id, status="diverged", spec={"seed": 0}, variant={}))
    done = play([job], {})
    assert done.context.started == []
    assert done.outcome.status == {job.run_id: "diverged"}


def test_a_signal_ends_what_runs_and_starts_nothing_more(play: Any, jobs: list[Job]) -> None:
    import os
    import signal

    events: list[Event] = []

    def listener(event: Event) -> None:
        events.append(event)
        if isinstance(event, Started):
            os.kill(os.getpid(), signal.SIGINT)

    a = jobs[0].run_id
    done = play(jobs, {a: [[Interrupted(a)]]}, listener=listener)
    assert done.outcome.interrupted
    assert done.outcome.status == {}
    assert done.context.terminated == [a]
    assert events == [Started(a), Interrupted(a)]


def test_the_first_steps_are_measured_or_refused(monkeypatch: pytest.MonkeyPatch, jobs: list[Job]) -> None:
    a, b = jobs
    context = Context({a.run_id: [[StepTime(0.25)]], b.run_id: [[]]})
    monkeypatch.setattr(local, "_context", lambda: context)
    assert local.measure_all({"full": a}) == {"full": 0.25}
    with pytest.raises(RunFailed, match="the first steps of -mtp failed: its process was killed"):
        local.measure_all({"-mtp": b})


def test_a_worker_says_what_became_of_its_run(monkeypatch: pytest.MonkeyPatch, jobs: list[Job], tmp_path: Path) -> None:
    from ablate.runs import execute
    from ablate.training import callbacks

    monkeypatch.setattr("signal.signal", lambda *_: None)
    job = jobs[0]

    def heard(outcome: Any) -> list[Any]:
        def played(job: Job, store: Store, tell: Any, *, listen: bool) -> Any:
            assert tell(1, 2.0, 3.0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(execute, "execute", played)
        connection = Connection([])
        worker.run(job, tmp_path, connection)  # type: ignore[arg-type]
        return connection.script

    progress = Progress(job.run_id, 1, 2.0, 3.0)
    assert heard(SimpleNamespace(status="diverged")) == [progress, Ended(job.run_id, "diverged")]
    assert heard(None) == [progress, Ended(job.run_id, "finished")]
    assert heard(callbacks.Interrupted()) == [progress, Interrupted(job.run_id)]
    _, failed = heard(ValueError("one line\nand another"))
    assert failed.reason == "ValueError: one line"
    assert "Traceback" in failed.traceback
