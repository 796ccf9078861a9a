"""The local executor in one process: workers that are played, so that nothing sleeps and every end can be had."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import processes
import pytest

from ablate.errors import RunFailed
from ablate.runs.events import Ended, Event, Failed, Interrupted, Killed, Progress, Started, StepTime, Stopping
from ablate.runs.executors import local, worker
from ablate.runs.job import Job
from ablate.runs.record import RunRecord
from ablate.runs.store import Store
from ablate.spec.decoding import encode

MakeJob = Callable[..., Job]
Script = list[Any]  # what a worker sends before its pipe closes


SILENCE = object()  # in a script: nothing more is heard until the process is killed


class Connection:
    """A pipe's end whose other end has said everything already."""

    def __init__(self, script: Script) -> None:
        self.script = list(script)

    @property
    def ready(self) -> bool:
        return self.script[:1] != [SILENCE]

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
        self.scripts, self.started = scripts, list[str]()
        self.terminated, self.killed = list[str](), list[str]()
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

        def kill() -> None:
            self.killed.append(identity)
            connection.script.clear()

        def terminate() -> None:
            self.terminated.append(identity)

        return SimpleNamespace(start=start, join=join, terminate=terminate, kill=kill, exitcode=-9, name=identity)


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Execute jobs with scripts by run; returns the outcome, the events, the context and the store."""

    def run(jobs: Sequence[Job], scripts: dict[str, list[Script]], **options: Any) -> Any:
        context, events, store = Context(scripts), list[Event](), Store(tmp_path / "study")
        store.create()
        monkeypatch.setattr(local, "_context", lambda: context)
        monkeypatch.setattr(local, "wait", lambda connections, timeout: [c for c in connections if c.ready])
        monkeypatch.setattr(
            local, "time", SimpleNamespace(monotonic=options.pop("clock", time.monotonic), time=time.time)
        )
        listener = options.pop("listener", events.append)
        outcome = local.execute_all(jobs, store, n_parallel=options.pop("n_parallel", 1), listener=listener)
        return SimpleNamespace(outcome=outcome, events=events, context=context, store=store)

    return run


@pytest.fixture
def jobs(make_job: MakeJob) -> list[Job]:
    return [make_job(), make_job(seed=1)]


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
    commit(job, tmp_path)
    done = play([job], {})
    assert done.context.started == []
    assert done.outcome.status == {job.run_id: "diverged"}
    assert done.events == [Ended(job.run_id, "diverged")]


def commit(job: Job, folder: Path) -> None:
    """What another command does to the same study."""
    store = Store(folder / "study")
    store.create()
    store.commit(RunRecord(run_id=job.run_id, status="diverged", spec=encode(job.run), variant={}))


@pytest.mark.parametrize("said", [["failed"], ["interrupted"], []])
def test_a_record_is_looked_for_before_a_failure_is_noted(
    play: Any, jobs: list[Job], tmp_path: Path, said: list[str]
) -> None:
    job, events = jobs[0], list[Event]()
    known = {"failed": Failed(job.run_id, "OSError: gone"), "interrupted": Interrupted(job.run_id)}

    def listener(event: Event) -> None:
        events.append(event)
        if isinstance(event, Started):
            commit(job, tmp_path)

    done = play([job], {job.run_id: [[known[word] for word in said]]}, listener=listener)
    assert events == [Started(job.run_id), Ended(job.run_id, "diverged")]
    assert done.outcome.status == {job.run_id: "diverged"}
    assert not (tmp_path / "study" / "failures").exists()


def signalling(events: list[Event], signals: dict[type, int]) -> Callable[[Event], None]:
    """A listener that sends this process a signal at the first event of a kind."""
    waiting = dict(signals)

    def listener(event: Event) -> None:
        events.append(event)
        if number := waiting.pop(type(event), None):
            os.kill(os.getpid(), number)

    return listener


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("then", [None, signal.SIGTERM])
def test_a_signal_ends_what_runs_and_starts_nothing_more(
    play: Any, jobs: list[Job], number: int, then: int | None
) -> None:
    events, before = list[Event](), signal.getsignal(number)
    signals: dict[type, int] = {Started: number} | ({Stopping: then} if then else {})
    a = jobs[0].run_id
    done = play(jobs, {a: [[Interrupted(a)]]}, listener=signalling(events, signals))
    assert done.outcome.interrupted
    assert done.outcome.status == {}
    assert done.context.terminated == [a]
    assert done.context.killed == []
    assert events == [Started(a), Stopping(1), Interrupted(a)]
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGUSR1])
def test_ctrl_c_after_a_signal_ends_everything_at_once(play: Any, jobs: list[Job], first: int) -> None:
    events: list[Event] = []
    a, b = (job.run_id for job in jobs)
    listener = signalling(events, {Started: first, Stopping: signal.SIGINT})
    done = play(jobs, {a: [[SILENCE]], b: [[SILENCE]]}, listener=listener, n_parallel=2)
    assert done.outcome.interrupted
    assert set(done.context.killed) == {a}
    assert events == [Started(a), Stopping(1), Interrupted(a)]
    assert done.store.failures() == []


def test_under_nohup_a_hangup_stays_ignored(play: Any, jobs: list[Job]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        scripts = {job.run_id: [[Ended(job.run_id, "finished")]] for job in jobs}
        done = play(jobs, scripts, listener=signalling([], {Started: signal.SIGHUP}))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not done.outcome.interrupted
    assert set(done.outcome.status) == {job.run_id for job in jobs}


def test_all_runs_have_ended_when_the_signal_comes_too_late(play: Any, jobs: list[Job]) -> None:
    a = jobs[0].run_id
    done = play([jobs[0]], {a: [[Ended(a, "finished")]]}, listener=signalling([], {Started: signal.SIGINT}))
    assert not done.outcome.interrupted


def ticking(step_s: float) -> Callable[[], float]:
    """A clock on which so much passes between two looks."""
    now = itertools.count(0.0, step_s)
    return lambda: next(now)


def test_a_worker_that_makes_no_progress_is_ended_and_goes_on_from_its_checkpoint(play: Any, jobs: list[Job]) -> None:
    a = jobs[0].run_id
    training = Progress(a, 1, 2.0, 100.0)
    scripts = {a: [[training, SILENCE], [training, Ended(a, "finished")]]}
    done = play([jobs[0]], scripts, clock=ticking(0.5))
    assert done.context.killed == [a]
    (killed,) = (event for event in done.events if isinstance(event, Killed))
    assert killed.reason == f"it made no progress for {local.SILENT_S + 0.5:.0f} seconds, and was ended"
    assert done.outcome.status == {a: "finished"}
    hung = play([jobs[0]], {a: [[training, SILENCE]] * 3}, clock=ticking(0.5))
    assert hung.outcome.status == {a: "failed"}
    assert "no progress for 60 seconds, and was ended, 3 times" in hung.store.failures()[0].reason


def test_patience_grows_with_the_model_the_start_and_the_silences_that_were_broken(jobs: list[Job]) -> None:
    def silence_allowed(heard: list[tuple[float, Any]], allowed_s: float = local.SILENT_S) -> float:
        killed = list[bool]()
        process = SimpleNamespace(kill=lambda: killed.append(True))
        worker = local._Worker(jobs[0], process, None, 0, allowed_s)
        for silent_s, message in heard:
            worker.look(silent_s)
            worker.hear(message)
        assert not killed
        passed = 0.0
        while not killed:
            worker.look(1.0)
            passed += 1.0
        return passed

    starting, training = Progress("a", 0, None, 0.0), Progress("a", 1, 2.0, 9.0)
    assert silence_allowed([]) == silence_allowed([(0.5, starting)]) == 601
    assert silence_allowed([(0.5, training)]) == 61
    assert silence_allowed([(0.5, training)], allowed_s=160.0) == 161
    assert silence_allowed([(20.0, starting), (20.0, training), (0.5, training)]) == 61
    assert silence_allowed([(0.5, training), (20.0, training), (0.5, training)]) == local.SILENT_GAPS * 20 + 1


def test_time_in_which_the_study_itself_was_paused_does_not_count(play: Any, jobs: list[Job]) -> None:
    a = jobs[0].run_id
    hour = itertools.chain([0.0, 0.1], itertools.count(3600.0, 0.5))
    done = play([jobs[0]], {a: [[Progress(a, 1, 2.0, 1.0), SILENCE], [], []]}, clock=lambda: next(hour))
    killed = [event for event in done.events if isinstance(event, Killed)]
    assert "for 60 seconds" in killed[0].reason


def test_a_worker_that_was_stopped_alone_goes_on_from_its_checkpoint(play: Any, jobs: list[Job]) -> None:
    a = jobs[0].run_id
    done = play([jobs[0]], {a: [[Interrupted(a)], [Ended(a, "finished")]]})
    assert done.events == [
        Started(a),
        Killed(a, "it was stopped by a signal"),
        Started(a),
        Ended(a, "finished"),
    ]


def test_speeds_are_measured_in_interleaved_rounds_under_the_load_of_the_study(
    monkeypatch: pytest.MonkeyPatch, jobs: list[Job]
) -> None:
    a, b = (job.run_id for job in jobs)
    times = {a: [[StepTime(s)] for s in (0.9, 0.2, 0.3)], b: [[StepTime(s)] for s in (0.5, 0.4, 0.1)]}
    context = Context(times)
    monkeypatch.setattr(local, "_context", lambda: context)
    found = local.measure_all({"full": jobs[0], "-mtp": jobs[1]}, n_parallel=1, n_rounds=3, seconds=2.0)
    assert found == {"full": 0.3, "-mtp": 0.4}
    assert context.started == [a, b, b, a, a, b]
    assert context.most_alive == 1
    together = Context({name: [[StepTime(0.1)]] * 3 for name in (a, b)})
    monkeypatch.setattr(local, "_context", lambda: together)
    local.measure_all({"full": jobs[0], "-mtp": jobs[1]}, n_parallel=3, n_rounds=1, seconds=0.0)
    assert together.started == [a, b, a]
    assert together.most_alive == 3


def test_the_first_steps_are_measured_or_refused(monkeypatch: pytest.MonkeyPatch, jobs: list[Job]) -> None:
    a, b = jobs
    context = Context({a.run_id: [[StepTime(0.25)]], b.run_id: [[]]})
    monkeypatch.setattr(local, "_context", lambda: context)
    once = {"n_parallel": 1, "n_rounds": 1, "seconds": 0.0}
    assert local.measure_all({"full": a}, **once) == {"full": 0.25}
    with pytest.raises(RunFailed, match="the first steps of -mtp failed: its process was killed"):
        local.measure_all({"-mtp": b}, **once)


def test_a_worker_says_what_became_of_its_run(monkeypatch: pytest.MonkeyPatch, jobs: list[Job], tmp_path: Path) -> None:
    from ablate.runs import execute
    from ablate.training import callbacks

    job = jobs[0]

    def heard(outcome: Any) -> list[Any]:
        def played(job: Job, store: Store, tell: Any, stop: Any) -> Any:
            tell(1, 2.0, 3.0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(execute, "execute", played)
        connection = Connection([])
        worker.run(job, tmp_path, connection)  # type: ignore[arg-type]
        return connection.script

    progress = Progress(job.run_id, 1, 2.0, 3.0)
    assert heard(SimpleNamespace(status="diverged")) == [progress, Ended(job.run_id, "diverged")]
    assert heard(callbacks.Interrupted()) == [progress, Interrupted(job.run_id)]
    _, failed = heard(ValueError("one line\nand another"))
    assert failed.reason == "ValueError: one line"
    assert "Traceback" in failed.traceback


def test_a_real_process_that_hangs_is_ended_and_its_run_finished(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "SILENT_S", 2.0)
    monkeypatch.setattr(local, "SILENT_GAPS", 4)
    job, store, events = make_job(n_steps=100), Store(tmp_path), list[Event]()
    store.create()

    def listener(event: Event) -> None:
        events.append(event)
        if isinstance(event, Killed):
            monkeypatch.setattr(local, "SILENT_S", 600.0)
        if isinstance(event, Progress) and event.loss and not any(isinstance(e, Killed) for e in events):
            for worker in processes.workers(os.getpid()):
                os.kill(worker, signal.SIGSTOP)

    outcome = local.execute_all([job], store, n_parallel=1, listener=listener)
    assert outcome.status == {job.run_id: "finished"}
    reasons = [event.reason for event in events if isinstance(event, Killed)]
    assert "it made no progress for" in reasons[0]
    assert isinstance(events[-1], Ended)
