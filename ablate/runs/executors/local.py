"""Runs on this machine: several processes at a time, each with its own memory, faults and clock."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

from ablate.errors import RunFailed
from ablate.runs.executors import worker as target
from ablate.runs.job import Job
from ablate.runs.record import RunRecord
from ablate.runs.store import Store
from ablate.spec.decoding import encode, run_id

N_KILLED_RETRIES = 2  # of a run whose process was killed from outside: it goes on from its checkpoint
POLL_S = 0.2
KEPT_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a run: "started", "progress", "finished", "diverged", "failed", "killed" or "interrupted"."""

    run_id: str
    kind: str
    step: int = 0
    loss: float = 0.0
    tokens_per_s: float = 0.0
    reason: str = ""


Listener = Callable[[Event], None]


@dataclass(slots=True)
class _Worker:
    job: Job
    process: Any
    connection: Any
    n_killed: int
    message: tuple[Any, ...] | None = None


@dataclass(slots=True)
class Outcome:
    """Runs by what became of them. `interrupted` is true when the study was stopped by a signal."""

    status: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False


def execute_all(jobs: Sequence[Job], store: Store, *, n_parallel: int, listener: Listener) -> Outcome:
    """Run what has no record yet. A run that fails leaves a failure and the others go on."""
    outcome, waiting, active = Outcome(), [], list[_Worker]()
    for job in jobs:
        record = store.read(run_id(job.run))
        if record is None:
            waiting.append((job, 0))
        else:
            outcome.status[record.run_id] = record.status
    context = _context()
    with _stopping() as stop:
        while active or (waiting and not stop()):
            while waiting and len(active) < n_parallel and not stop():
                active.append(_start(context, *waiting.pop(0), store))
                listener(Event(run_id(active[-1].job.run), "started"))
            if stop() and not outcome.interrupted:
                outcome.interrupted = True
                for worker in active:
                    worker.process.terminate()
            for worker in _ended(active, listener):
                active.remove(worker)
                _finish(worker, store, outcome, waiting, listener)
    outcome.interrupted = outcome.interrupted or bool(waiting)
    return outcome


def measure_all(jobs: Mapping[str, Job]) -> dict[str, float]:
    """Seconds of an optimizer step of each job, one after the other. RunFailed if one cannot run."""
    context, seconds = _context(), {}
    for name, job in jobs.items():
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=target.measure, args=(job, theirs))
        process.start()
        theirs.close()
        try:
            message = mine.recv()
        except EOFError:
            message = ("failed", "its process was killed (out of memory?)", "")
        process.join()
        if message[0] != "step_s":
            raise RunFailed(f"the first steps of {name} failed: {message[1]}")
        seconds[name] = message[1]
    return seconds


def _context() -> Any:
    # A server that has imported torch once and forks: a run then starts in milliseconds, with a peak memory of its own.
    context = multiprocessing.get_context("forkserver")
    # Of the server and its children, which inherit them: glibc otherwise gives memory back to the system and asks for
    # it again in every step, thousands of page faults that cost 5 to 19 ms of a 76 ms step on a CPU.
    for threshold in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_"):
        os.environ.setdefault(threshold, str(KEPT_BYTES))
    context.set_forkserver_preload([target.HEAVY])
    return context


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Turns SIGINT and SIGTERM into a flag while the study runs."""
    seen: list[int] = []
    before = {n: signal.signal(n, lambda number, _: seen.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(context: Any, job: Job, n_killed: int, store: Store) -> _Worker:
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=target.run, args=(job, store.folder, theirs), name=run_id(job.run))
    process.start()
    theirs.close()
    return _Worker(job, process, mine, n_killed)


def _ended(active: Sequence[_Worker], listener: Listener) -> list[_Worker]:
    """Hear what the workers say for a moment; those whose pipe closed have ended."""
    ended = []
    ready = wait([worker.connection for worker in active], timeout=POLL_S) if active else []
    for worker in active:
        if worker.connection not in ready:
            continue
        try:
            message = worker.connection.recv()
        except EOFError:
            worker.process.join()
            ended.append(worker)
            continue
        if message[0] == "progress":
            listener(Event(run_id(worker.job.run), "progress", *message[1:]))
        else:
            worker.message = message
    return ended


def _finish(
    worker: _Worker, store: Store, outcome: Outcome, waiting: list[tuple[Job, int]], listener: Listener
) -> None:
    """What became of a run whose process has ended."""
    identity = run_id(worker.job.run)
    message = worker.message
    if message is None and outcome.interrupted:
        message = ("interrupted",)
    if message is None:
        reason = f"its process was killed (exit code {worker.process.exitcode}; out of memory?)"
        if worker.n_killed < N_KILLED_RETRIES:
            listener(Event(identity, "killed", reason=reason))
            waiting.insert(0, (worker.job, worker.n_killed + 1))
            return
        message = ("failed", f"{reason}, {worker.n_killed + 1} times", "")
    if message[0] == "done":
        outcome.status[identity] = message[1]
        listener(Event(identity, message[1]))
    elif message[0] == "interrupted":
        listener(Event(identity, "interrupted"))
    else:
        outcome.status[identity] = "failed"
        store.note_failure(_failure(worker.job, message[1], message[2]))
        listener(Event(identity, "failed", reason=message[1]))


def _failure(job: Job, reason: str, detail: str) -> RunRecord:
    return RunRecord(
        run_id=run_id(job.run),
        status="failed",
        spec=encode(job.run),
        variant=dict(job.variant),
        reason=reason,
        environment={"time_s": time.time()},
        attempts=({"traceback": detail},) if detail else (),
    )
