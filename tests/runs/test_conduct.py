"""How runs are conducted, with an executor that is played: nothing sleeps, and every end can be had."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ablate.runs import conduct
from ablate.runs.conduct import execute_all
from ablate.runs.events import Ended, Event, Failed, Interrupted, Killed, Leaving, Progress, Started, Stopping
from ablate.runs.executors.protocol import CANCELLED, Seen
from ablate.runs.executors.worker import LOST, OUT_OF_MEMORY
from ablate.runs.job import Job
from ablate.runs.progress import Standing, tell
from ablate.runs.record import Failure, RunRecord
from ablate.runs.store import Store
from ablate.spec.decoding import encode

MakeJob = Callable[..., Job]
TRAINING = Standing(phase="training", step=3, loss=2.5, tokens_per_s=100.0)
STOPPED = Standing(phase="stopped")


@dataclass
class Played:
    """An executor whose n-th process of a run does what the n-th of the run's scripts says, one word at each poll.

    Words: a `Standing` that the attempt tells, a reason as text that it notes as its failure, "record" that it commits,
    "silence" for ever, "queue" for being put back, a number for the exit code of a process that was killed.
    """

    store: Store
    scripts: dict[str, list[list[Any]]]
    n_parallel: int = 1
    outlives: bool = False
    known: dict[str, str] = field(default_factory=dict)  # what an earlier command has submitted
    jobs: dict[str, Job] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    active: dict[str, tuple[Path, list[Any]]] = field(default_factory=dict)
    submitted: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    most: int = 0
    closed: bool = False

    def submit(self, jobs: Sequence[Job], key: str) -> None:
        for job in jobs:
            self.jobs[job.run_id], self.keys[job.run_id] = job, key
            self.submitted.append(job.run_id)
            self.waiting.append(job.run_id)

    def adopt(self, jobs: Sequence[Job]) -> Mapping[str, str]:
        for job in jobs:
            if job.run_id in self.known:
                self.jobs[job.run_id], self.keys[job.run_id] = job, self.known[job.run_id]
                self.waiting.append(job.run_id)
        return self.known

    def poll(self, timeout_s: float) -> Seen:
        gone = {}
        for run, (attempt, script) in list(self.active.items()):
            word = script[0] if script else ""
            if word != "silence":
                script[:1] = []
            if isinstance(word, Standing):
                tell(attempt, word)
            elif word == "queue":
                del self.active[run]
                self.waiting.append(run)
                self.scripts[run].insert(0, script)
            elif word != "silence":
                del self.active[run]
                gone[run] = f"killed ({word})" if isinstance(word, int) else word if word == CANCELLED else ""
                self._leave(run, attempt, word)
        while self.waiting and len(self.active) < self.n_parallel:
            run = self.waiting.pop(0)
            attempt = self.store.new_attempt(run, self.keys[run])
            self.active[run] = (attempt, self.scripts[run].pop(0))
        self.most = max(self.most, len(self.active))
        return Seen(running=set(self.active), gone=gone)

    def _leave(self, run: str, attempt: Path, word: Any) -> None:
        if word == "record":
            commit(self.jobs[run], self.store)
        elif isinstance(word, str) and word not in ("", CANCELLED):
            failure = Failure(run_id=run, variant={}, seed=0, reason=word, traceback="Traceback", time_s=0.0)
            self.store.note_failure(failure, attempt)

    def cancel(self, run_ids: Collection[str], *, at_once: bool) -> None:
        self.waiting = [run for run in self.waiting if run not in run_ids]
        for run in self.active.keys() & set(run_ids):
            (self.ended if at_once else self.stopped).append(run)
            if at_once:
                self.active[run] = (self.active[run][0], [-9])

    def close(self) -> None:
        self.closed = True


def commit(job: Job, store: Store) -> None:
    store.commit(RunRecord(run_id=job.run_id, status="finished", spec=encode(job.run), variant={}))


@pytest.fixture
def jobs(make_job: MakeJob) -> list[Job]:
    return [make_job(), make_job(seed=1)]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Conduct jobs with scripts by run; returns the outcome, the events, the executor and the store."""

    def run(jobs: Sequence[Job], scripts: dict[str, list[list[Any]]], **options: Any) -> Any:
        store, events = Store(tmp_path / "study"), list[Event]()
        store.create()
        clock = options.pop("clock", None) or ticking(0.5)
        monkeypatch.setattr(conduct, "time", SimpleNamespace(monotonic=clock, time=time.time))
        listener, more = options.pop("listener", None) or events.append, options.pop("more", None)
        played = Played(store, scripts, **options)
        outcome = execute_all(jobs, store, played, listener=listener, more=more)
        assert played.closed
        return SimpleNamespace(outcome=outcome, events=events, played=played, store=store)

    return run


def ticking(step_s: float) -> Callable[[], float]:
    """A clock on which so much passes between two looks."""
    now = itertools.count(0.0, step_s)
    return lambda: next(now)


def signalling(events: list[Event], signals: dict[type, int]) -> Callable[[Event], None]:
    """A listener that sends this process a signal at the first event of a kind."""
    waiting = dict(signals)

    def listener(event: Event) -> None:
        events.append(event)
        if number := waiting.pop(type(event), None):
            os.kill(os.getpid(), number)

    return listener


def test_events_are_told_in_order_and_statuses_kept(play: Any, jobs: list[Job]) -> None:
    a, b = (job.run_id for job in jobs)
    done = play(jobs, {a: [[TRAINING, "record"]], b: [["record"]]})
    said = Progress(a, 3, 2.5, 100.0)
    assert done.events == [Started(a), said, Ended(a, "finished"), Started(b), Ended(b, "finished")]
    assert done.outcome.status == {a: "finished", b: "finished"}
    assert not done.outcome.interrupted
    assert done.played.most == 1


def test_a_failure_is_its_attempts_and_the_others_go_on(play: Any, jobs: list[Job]) -> None:
    a, b = (job.run_id for job in jobs)
    done = play(jobs, {a: [["ValueError: no"]], b: [["record"]]})
    assert done.outcome.status == {a: "failed", b: "finished"}
    assert Failed(a, "ValueError: no", "Traceback") in done.events
    (failure,) = done.store.failures()
    assert (failure.run_id, failure.reason, failure.traceback) == (a, "ValueError: no", "Traceback")
    assert len(list(done.store.attempts_folder(a).glob("*/failure.json"))) == 1


@pytest.mark.parametrize("lost", [[-9], [], [OUT_OF_MEMORY], [f"{LOST}: the process of rank 1 of 2 has ended"]])
def test_a_lost_run_is_submitted_again_and_given_up_after_three(play: Any, jobs: list[Job], lost: list[Any]) -> None:
    job = jobs[0]
    again = play([job], {job.run_id: [list(lost), list(lost), ["record"]]})
    assert again.played.submitted == [job.run_id] * 3
    assert [type(event) for event in again.events] == [Started, Killed, Started, Killed, Started, Ended]


@pytest.mark.parametrize("lost", [[-9], [], [OUT_OF_MEMORY], [f"{LOST}: the process of rank 1 of 2 has ended"]])
def test_what_is_lost_three_times_has_failed(play: Any, jobs: list[Job], lost: list[Any]) -> None:
    job = jobs[0]
    done = play([job], {job.run_id: [list(lost) for _ in range(3)]})
    assert done.outcome.status == {job.run_id: "failed"}
    assert isinstance(done.events[-1], Failed)
    assert "3 times" in done.events[-1].reason
    assert len(done.store.failures()) == 1


def test_what_a_killed_attempt_was_writing_is_gone_before_the_next(play: Any, jobs: list[Job], tmp_path: Path) -> None:
    job, store, events = jobs[0], Store(tmp_path / "study"), list[Event]()

    def listener(event: Event) -> None:
        events.append(event)
        if isinstance(event, Started) and len(events) == 1:
            (attempt,) = store.attempts_folder(job.run_id).iterdir()
            (attempt / ".writing-0").mkdir()
            (attempt / ".writing-0" / "tensors.safetensors").write_text("half")
            (attempt / "step-000000000001").mkdir()
            (store.run_folder(job.run_id) / ".writing-1").write_text("half")

    done = play([job], {job.run_id: [[-9], ["record"]]}, listener=listener)
    assert done.outcome.status == {job.run_id: "finished"}
    assert list(store.run_folder(job.run_id).rglob(".writing-*")) == []
    assert list(store.run_folder(job.run_id).rglob("step-*")), "what was whole stays: the run goes on from it"


def test_a_run_with_a_record_is_not_submitted(play: Any, jobs: list[Job], tmp_path: Path) -> None:
    commit(jobs[0], Store(tmp_path / "study"))
    done = play(jobs[:1], {})
    assert done.played.submitted == []
    assert done.events == [Ended(jobs[0].run_id, "finished")]


def test_what_waits_elsewhere_already_is_watched_and_not_submitted_again(play: Any, jobs: list[Job]) -> None:
    a, b = (job.run_id for job in jobs)
    done = play(jobs, {a: [[TRAINING, "record"]], b: [["record"]]}, known={a: "earlier-0"}, outlives=True)
    assert done.played.submitted == [b]
    assert done.outcome.status == {a: "finished", b: "finished"}
    assert Progress(a, 3, 2.5, 100.0) in done.events, "its attempts are found by the earlier key"


def test_a_run_that_is_put_back_into_the_queue_is_not_lost(play: Any, jobs: list[Job]) -> None:
    a = jobs[0].run_id
    done = play(jobs[:1], {a: [["queue", "record"]]}, outlives=True, n_parallel=1)
    assert done.played.submitted == [a]
    assert done.outcome.status == {a: "finished"}


@pytest.mark.parametrize("said", ["ValueError: gone", STOPPED, -9])
def test_a_record_is_looked_for_before_a_failure_counts(play: Any, jobs: list[Job], tmp_path: Path, said: Any) -> None:
    """The same command, given twice, was faster elsewhere."""
    job, events = jobs[0], list[Event]()

    def listener(event: Event) -> None:
        events.append(event)
        if isinstance(event, Started):
            commit(job, Store(tmp_path / "study"))

    done = play([job], {job.run_id: [[said]]}, listener=listener)
    assert events[-1] == Ended(job.run_id, "finished")
    assert done.outcome.status == {job.run_id: "finished"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_stops_what_runs_and_starts_nothing_more(play: Any, jobs: list[Job], number: int) -> None:
    events, before = list[Event](), signal.getsignal(number)
    a = jobs[0].run_id
    done = play(jobs, {a: [[TRAINING, STOPPED, ""]]}, listener=signalling(events, {Started: number}))
    assert done.outcome.interrupted
    assert done.outcome.status == {}
    assert (done.played.stopped, done.played.ended) == ([a], [])
    assert [e for e in events if not isinstance(e, Progress)] == [Started(a), Stopping(1), Interrupted(a)]
    assert signal.getsignal(number) == before
    assert done.store.failures() == []


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGUSR1])
def test_ctrl_c_after_a_signal_ends_everything_at_once(play: Any, jobs: list[Job], first: int) -> None:
    events = list[Event]()
    a, b = (job.run_id for job in jobs)
    listener = signalling(events, {Started: first, Stopping: signal.SIGINT})
    soon = iter([0.01 * i for i in range(100)])  # long before the watchdog would end them
    scripts = {a: [["silence"]], b: [["silence"]]}
    done = play(jobs, scripts, listener=listener, n_parallel=2, clock=lambda: next(soon))
    assert done.outcome.interrupted
    assert set(done.played.ended) == {a, b}
    assert {type(event) for event in events} == {Started, Stopping, Interrupted}
    assert done.store.failures() == []


def test_a_signal_leaves_runs_that_outlive_the_watching(play: Any, jobs: list[Job]) -> None:
    events = list[Event]()
    a = jobs[0].run_id
    done = play(jobs[:1], {a: [["silence"]]}, listener=signalling(events, {Started: signal.SIGHUP}), outlives=True)
    assert done.outcome.interrupted
    assert events == [Started(a), Leaving(1)]
    assert (done.played.stopped, done.played.ended) == ([], [])


def test_a_run_that_somebody_cancelled_is_not_submitted_again(play: Any, jobs: list[Job]) -> None:
    a, b = (job.run_id for job in jobs)
    done = play(jobs, {a: [[TRAINING, CANCELLED]], b: [[TRAINING, "record"]]})
    assert done.outcome.interrupted
    assert done.outcome.status == {b: "finished"}
    assert Interrupted(a) in done.events
    assert done.store.failures() == []
    hung = play(jobs[:1], {a: [[TRAINING, "silence"], [TRAINING, "record"]]})
    assert hung.outcome.status == {a: "finished"}, "what the watchdog ended goes on, however its end is called"


def test_what_follows_begins_as_soon_as_there_is_room(play: Any, jobs: list[Job], make_job: MakeJob) -> None:
    a, b, c = *jobs, make_job(seed=2)
    rest = {b.run_id: c}

    def more(status: Mapping[str, str]) -> list[Job]:
        return [rest.pop(run) for run in list(rest) if run in status]

    scripts = {a.run_id: [[TRAINING] * 9 + ["record"]], b.run_id: [["record"]], c.run_id: [["record"]]}
    done = play(jobs, scripts, more=more, n_parallel=2)
    assert set(done.outcome.status) == {a.run_id, b.run_id, c.run_id}
    assert done.events.index(Ended(c.run_id, "finished")) < done.events.index(Ended(a.run_id, "finished"))
    known = play([], {}, more=lambda status: [a] if not status else [])
    assert known.outcome.status == {a.run_id: "finished"}, "a run that has its record ends at once"


def test_under_nohup_a_hangup_stays_ignored(play: Any, jobs: list[Job]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        scripts = {job.run_id: [["record"]] for job in jobs}
        done = play(jobs, scripts, listener=signalling([], {Started: signal.SIGHUP}))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not done.outcome.interrupted
    assert set(done.outcome.status) == {job.run_id for job in jobs}


def test_a_run_that_makes_no_progress_is_ended_and_goes_on_from_its_checkpoint(play: Any, jobs: list[Job]) -> None:
    a = jobs[0].run_id
    done = play(jobs[:1], {a: [[TRAINING, "silence"], [TRAINING, "record"]]})
    assert done.played.ended == [a]
    (killed,) = (event for event in done.events if isinstance(event, Killed))
    assert killed.reason == f"it made no progress for {conduct.SILENT_S + 0.5:.0f} seconds, and was ended"
    assert done.outcome.status == {a: "finished"}


def test_patience_grows_with_the_model_the_start_and_the_silences_that_were_broken(jobs: list[Job]) -> None:
    watched = conduct._Watched(jobs[0], "")
    usual = conduct.SILENT_S + conduct.SILENT_S_PER_PARAMETER * jobs[0].n_trained
    assert watched.allowed_s == conduct.START_FACTOR * usual
    assert watched.hear((Path("a"), TRAINING), 0.5)
    assert watched.allowed_s == usual
    assert not watched.hear((Path("a"), TRAINING), 20.0), "the same words are no news"
    assert watched.hear((Path("a"), STOPPED), 0.5)
    assert watched.allowed_s == conduct.SILENT_GAPS * 20.5
    watched.begin()
    assert watched.allowed_s == conduct.START_FACTOR * usual


def test_time_in_which_the_study_itself_was_paused_does_not_count(play: Any, jobs: list[Job]) -> None:
    a = jobs[0].run_id
    hours = itertools.chain([0.0, 0.5, 1.0, 1.5], itertools.count(3600.0, 0.5))
    done = play(jobs[:1], {a: [[TRAINING, "silence"], ["record"]]}, clock=lambda: next(hours))
    killed = [event for event in done.events if isinstance(event, Killed)]
    assert "for 60 seconds" in killed[0].reason
