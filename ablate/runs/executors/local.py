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
from ablate.runs.events import Ended, Failed, Interrupted, Killed, Listener, Progress, Started, StepTime
from ablate.runs.executors import worker as target
from ablate.runs.job import Job
from ablate.runs.record import Failure, RunStatus
from ablate.runs.store import Store

N_KILLED_RETRIES = 2  # of a run whose process was killed from outside: it goes on from its checkpoint
POLL_S = 0.2
KEPT_BYTES = 64 * 2**20


@dataclass(slots=True)
class _Worker:
    job: Job
    process: Any
    connection: Any
    n_killed: int
    message: Ended | Failed | Interrupted | None = None


@dataclass(slots=True)
class Outcome:
    """Runs by what became of them. `interrupted` is true when the study was stopped by a signal."""

    status: dict[str, RunStatus] = field(default_factory=dict)
    interrupted: bool = False


def execute_all(jobs: Sequence[Job], store: Store, *, n_parallel: int, listener: Listener) -> Outcome:
    """Run what has no record yet. A run that fails leaves a failure and the others go on."""
    outcome, waiting, active = Outcome(), [], list[_Worker]()
    for job in jobs:
        record = store.read(job.run_id)
        if record is None:
            waiting.append((job, 0))
        else:
            outcome.status[record.run_id] = record.status
    context = _context()
    with _stopping() as stop:
        while active or (waiting and not stop()):
            while waiting and len(active) < n_parallel and not stop():
                active.append(_start(context, *waiting.pop(0), store))
                listener(Started(active[-1].job.run_id))
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
            message: StepTime | Failed = mine.recv()
        except EOFError:
            message = Failed(job.run_id, "its process was killed (out of memory?)")
        process.join()
        if isinstance(message, Failed):
            raise RunFailed(f"the first steps of {name} failed: {message.reason}")
        seconds[name] = message.seconds
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
    process = context.Process(target=target.run, args=(job, store.folder, theirs), name=job.run_id)
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
        if isinstance(message, Progress):
            listener(message)
        else:
            worker.message = message
    return ended


def _finish(
    worker: _Worker, store: Store, outcome: Outcome, waiting: list[tuple[Job, int]], listener: Listener
) -> None:
    """What became of a run whose process has ended."""
    identity, message = worker.job.run_id, worker.message
    if message is None and outcome.interrupted:
        message = Interrupted(identity)
    if message is None:
        reason = f"its process was killed (exit code {worker.process.exitcode}; out of memory?)"
        if worker.n_killed < N_KILLED_RETRIES:
            listener(Killed(identity, reason))
            waiting.insert(0, (worker.job, worker.n_killed + 1))
            return
        message = Failed(identity, f"{reason}, {worker.n_killed + 1} times")
    if isinstance(message, Ended):
        outcome.status[identity] = message.status
    elif isinstance(message, Failed):
        outcome.status[identity] = "failed"
        store.note_failure(_failure(worker.job, message))
    listener(message)


def _failure(job: Job, message: Failed) -> Failure:
    return Failure(
        run_id=job.run_id,
        variant=dict(job.variant),
        seed=job.run.seed,
        reason=message.reason,
        traceback=message.traceback,
        time_s=time.time(),
    )
