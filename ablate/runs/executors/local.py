"""Runs on this machine: several processes at a time, each with its own memory, faults and clock."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

from ablate.errors import RunFailed
from ablate.runs.events import Ended, Failed, Interrupted, Killed, Listener, Progress, Started, StepTime, Stopping
from ablate.runs.executors import worker as target
from ablate.runs.executors.signals import Stop, stopping
from ablate.runs.job import Job
from ablate.runs.record import Failure, RunStatus
from ablate.runs.store import Store

N_RETRIES = 2  # of a run whose process was killed, or hung: it goes on from its checkpoint
POLL_S = 0.2
KEPT_BYTES = 64 * 2**20

# A worker that says nothing for as long as this is hung, and is ended. Workers speak every half second while batches
# go through the model; in between lie a backward pass, an optimizer step, the writing of a checkpoint.
SILENT_S = 60.0
SILENT_S_PER_PARAMETER = 1e-6  # a checkpoint of a large model takes its time
SILENT_GAPS = 20  # times the longest silence that the worker has broken in training
START_FACTOR = 10  # before the first step has ended: kernels are compiled, a teacher is loaded
MAX_LOOK_S = 1.0  # of the time between two looks that counts: this process may have been paused itself


@dataclass(slots=True)
class _Worker:
    job: Job
    process: Any
    connection: Any
    n_lost: int
    allowed_s: float  # silence, but for slow starts and what it has shown to need
    message: Ended | Failed | Interrupted | None = None
    silent_s: float = 0.0
    longest_s: float = 0.0
    trains: bool = False
    hung: str = ""

    def hear(self, message: Any) -> None:
        if self.trains:
            self.longest_s = max(self.longest_s, self.silent_s)
        self.silent_s = 0.0
        if isinstance(message, Progress):
            self.trains = self.trains or message.loss is not None
        else:
            self.message = message

    def look(self, passed_s: float) -> None:
        """End the process if it has been silent for too long."""
        self.silent_s += passed_s
        allowed_s = max(self.allowed_s * (1 if self.trains else START_FACTOR), SILENT_GAPS * self.longest_s)
        if self.silent_s > allowed_s and not self.hung:
            self.hung = f"it made no progress for {self.silent_s:.0f} seconds, and was ended"
            self.process.kill()


@dataclass(slots=True)
class Outcome:
    """Runs by what became of them. `interrupted` is true when the study was stopped by a signal."""

    status: dict[str, RunStatus] = field(default_factory=dict)
    interrupted: bool = False


def execute_all(jobs: Sequence[Job], store: Store, *, n_parallel: int, listener: Listener) -> Outcome:
    """Run what has no record yet. A run that fails leaves a failure and the others go on.

    The first signal lets every run stop at its next step with a checkpoint, a Ctrl-C after it ends them at once.
    """
    with stopping() as stop:
        pool = _Pool(store, listener, stop)
        for job in jobs:
            pool.add(job)
        while pool.active or (pool.waiting and not stop.requested):
            pool.start(n_parallel)
            pool.heed_signals()
            for worker in pool.listen():
                pool.finish(worker)
    return Outcome(status=pool.status, interrupted=stop.requested and len(pool.status) < len(jobs))


class _Pool:
    """The processes that run now, and the jobs that wait with how often each was lost."""

    def __init__(self, store: Store, listener: Listener, stop: Stop) -> None:
        self.store, self.listener, self.stop = store, listener, stop
        self.waiting: deque[tuple[Job, int]] = deque()
        self.active: list[_Worker] = []
        self.status: dict[str, RunStatus] = {}
        self.context = _context()
        self.looked = time.monotonic()
        self.told_to_stop = False

    def add(self, job: Job) -> None:
        """Let a job wait, unless its run has a record."""
        if record := self.store.read(job.run_id):
            self.status[job.run_id] = record.status
            self.listener(Ended(job.run_id, record.status))
        else:
            self.waiting.append((job, 0))

    def start(self, n_parallel: int) -> None:
        while self.waiting and len(self.active) < n_parallel and not self.stop.requested:
            job, n_lost = self.waiting.popleft()
            mine, theirs = self.context.Pipe(duplex=False)
            process = self.context.Process(target=target.run, args=(job, self.store.folder, theirs), name=job.run_id)
            process.start()
            theirs.close()
            allowed_s = SILENT_S + SILENT_S_PER_PARAMETER * job.n_trained
            self.active.append(_Worker(job, process, mine, n_lost, allowed_s))
            self.listener(Started(job.run_id))

    def heed_signals(self) -> None:
        if self.stop.requested and not self.told_to_stop:
            self.told_to_stop = True
            self.listener(Stopping(len(self.active)))
            for worker in self.active:
                worker.process.terminate()
        if self.stop.at_once:
            for worker in self.active:
                worker.process.kill()

    def listen(self) -> list[_Worker]:
        """Hear what the workers say for a moment, and end those that hang; those whose pipe closed have ended."""
        ended = []
        ready = wait([worker.connection for worker in self.active], timeout=POLL_S) if self.active else []
        now = time.monotonic()
        passed_s, self.looked = min(now - self.looked, MAX_LOOK_S), now
        for worker in self.active:
            if worker.connection not in ready:
                worker.look(passed_s)
                continue
            try:
                message = worker.connection.recv()
            except EOFError:
                worker.process.join()
                ended.append(worker)
                continue
            worker.hear(message)
            if isinstance(message, Progress):
                self.listener(message)
        return ended

    def finish(self, worker: _Worker) -> None:
        """What became of a run whose process has ended."""
        self.active.remove(worker)
        identity, event = worker.job.run_id, self._became(worker)
        if isinstance(event, Killed):
            self.waiting.appendleft((worker.job, worker.n_lost + 1))
        elif isinstance(event, Ended):
            self.status[identity] = event.status
        elif isinstance(event, Failed):
            self.status[identity] = "failed"
            self.store.note_failure(_failure(worker.job, event))
        self.listener(event)

    def _became(self, worker: _Worker) -> Ended | Failed | Interrupted | Killed:
        identity, message = worker.job.run_id, worker.message
        if isinstance(message, Ended):
            return message
        try:
            # The same run may have been another command's too, which was faster and took the ground away.
            record = self.store.read(identity)
        except ValueError as error:
            return Failed(identity, str(error))
        if record:
            return Ended(identity, record.status)
        if isinstance(message, Failed):
            return message
        if self.stop.requested:
            return Interrupted(identity)
        reason = "it was stopped by a signal" if message else f"its process was killed ({_exit(worker)})"
        reason = worker.hung or reason
        if worker.n_lost < N_RETRIES:
            return Killed(identity, reason)
        return Failed(identity, f"{reason}, {worker.n_lost + 1} times")


def _exit(worker: _Worker) -> str:
    return f"exit code {worker.process.exitcode}; out of memory?"


def _failure(job: Job, message: Failed) -> Failure:
    return Failure(
        run_id=job.run_id,
        variant=dict(job.variant),
        seed=job.run.seed,
        reason=message.reason,
        traceback=message.traceback,
        time_s=time.time(),
    )


def _context() -> Any:
    # A server that has imported torch once and forks: a run then starts in milliseconds, with a peak memory of its own.
    context = multiprocessing.get_context("forkserver")
    # Of the server and its children, which inherit them: glibc otherwise gives memory back to the system and asks for
    # it again in every step, thousands of page faults that cost 5 to 19 ms of a 76 ms step on a CPU.
    for threshold in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_"):
        os.environ.setdefault(threshold, str(KEPT_BYTES))
    context.set_forkserver_preload([target.HEAVY])
    return context


def measure_all(jobs: Mapping[str, Job], *, n_parallel: int, n_rounds: int, seconds: float) -> dict[str, float]:
    """Seconds of an optimizer step of each job, the median of rounds that each take at least `seconds`.

    RunFailed if one cannot run.
    Every second round goes backwards, so that a drift of the machine's speed favours none; and always `n_parallel` run
    at a time, as they will later.
    """
    order = [name for i in range(n_rounds) for name in (list(jobs)[:: 1 if i % 2 == 0 else -1])]
    order += [order[i % len(order)] for i in range(-len(order) % n_parallel)]
    found: dict[str, list[float]] = {name: [] for name in jobs}
    context = _context()
    for i in range(0, len(order), n_parallel):
        together = [(name, *_probing(context, jobs[name], seconds)) for name in order[i : i + n_parallel]]
        for name, process, connection in together:
            message = _step_time(jobs[name], connection)
            process.join()
            if isinstance(message, Failed):
                raise RunFailed(f"the first steps of {name} failed: {message.reason}")
            found[name].append(message.seconds)
    return {name: statistics.median(times) for name, times in found.items()}


def _probing(context: Any, job: Job, seconds: float) -> tuple[Any, Any]:
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=target.measure, args=(job, seconds, theirs), name=job.run_id)
    process.start()
    theirs.close()
    return process, mine


def _step_time(job: Job, connection: Any) -> StepTime | Failed:
    try:
        message: StepTime | Failed = connection.recv()
    except EOFError:
        return Failed(job.run_id, "its process was killed (out of memory?)")
    return message
