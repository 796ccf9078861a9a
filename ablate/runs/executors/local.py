"""Runs on this machine: several processes at a time, each with its own memory, faults and clock."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import wait
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

from ablate.errors import RunFailed
from ablate.runs.executors import worker as target
from ablate.runs.executors.protocol import Seen
from ablate.runs.job import Job
from ablate.runs.job_file import write_job
from ablate.runs.store import Store

KEPT_BYTES = 64 * 2**20
PRELOADED = ["ablate.runs.executors.forked"]


@dataclass(slots=True)
class _Worker:
    process: Any
    connection: Any
    run: str | None = None  # None: it waits for one


class LocalExecutor:
    """At most `n_parallel` processes, each at one run at a time."""

    outlives = False

    def __init__(self, store: Store, n_parallel: int) -> None:
        self.store, self.n_parallel = store, n_parallel
        self.waiting: deque[tuple[Job, str]] = deque()
        self.workers: list[_Worker] = []
        self.files: dict[str, Path] = {}  # job files of runs that are next
        self.context = _context()

    def submit(self, jobs: Sequence[Job], key: str) -> None:
        # What was lost is submitted again, and goes first: a study that is stopped then has whole pairs.
        self.waiting.extendleft((job, key) for job in reversed(jobs))

    def adopt(self, jobs: Sequence[Job]) -> Mapping[str, str]:
        return {}

    def poll(self, timeout_s: float) -> Seen:
        self._give()
        gone = {}
        connections = [worker.connection for worker in self.workers]
        for connection in wait(connections, timeout_s) if connections else []:
            worker = next(w for w in self.workers if w.connection is connection)
            ended, run = self._hear(worker), worker.run
            if run is not None:
                gone[run] = ended
            worker.run = None
        self._give()
        return Seen(running={w.run for w in self.workers if w.run is not None}, gone=gone)

    def _hear(self, worker: _Worker) -> str:
        """How a worker's process ended, or "" if it takes another run. It has said that, or closed its end."""
        try:
            worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            self.workers.remove(worker)
            worker.connection.close()
            return _exit(worker.process.exitcode)
        return ""

    def _give(self) -> None:
        """Runs to processes that wait for one, and to new ones as long as there is room."""
        idle = [worker for worker in self.workers if worker.run is None]
        while self.waiting and (idle or len(self.workers) < self.n_parallel):
            job, key = self.waiting.popleft()
            worker = idle.pop() if idle else self._start()
            path = self._file(job)
            try:
                worker.connection.send((str(path), key))
            except OSError:  # it has ended meanwhile; who waits for news learns it
                self.waiting.appendleft((job, key))
                self.workers.remove(worker)
                worker.connection.close()
            else:
                worker.run = job.run_id

        for job, _ in list(islice(self.waiting, self.n_parallel)):
            self.files[job.run_id] = self._file(job)  # while the others run, so that none waits for the disk

    def _file(self, job: Job) -> Path:
        return self.files.pop(job.run_id, None) or write_job(job, self.store.run_folder(job.run_id))

    def _start(self) -> _Worker:
        mine, theirs = self.context.Pipe()
        process = self.context.Process(target=target.serve, args=(theirs,))
        process.start()
        theirs.close()
        self.workers.append(worker := _Worker(process, mine))
        return worker

    def cancel(self, run_ids: Collection[str], *, at_once: bool) -> None:
        self.waiting = deque(item for item in self.waiting if item[0].run_id not in run_ids)
        for worker in self.workers:
            if worker.run in run_ids:
                (worker.process.kill if at_once else worker.process.terminate)()

    def close(self) -> None:
        """Let the processes that wait for a run end; with runs that go on, this waits for nothing."""
        for worker in self.workers:
            worker.connection.close()
        for worker in self.workers:
            if worker.run is None:
                worker.process.join()
        self.workers.clear()


def _exit(code: int | None) -> str:
    if code == 0:
        return ""
    if code is not None and code < 0:
        return f"its process was killed (exit code {code}; out of memory?)"
    return f"its process ended with exit code {code}"


def _context() -> Any:
    # A server that has imported torch once and forks: a run then starts in milliseconds, with a peak memory of its own.
    context = multiprocessing.get_context("forkserver")
    # Of the server and its children, which inherit them: glibc otherwise gives memory back to the system and asks for
    # it again in every step, thousands of page faults that cost 5 to 19 ms of a 76 ms step on a CPU.
    for threshold in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_"):
        os.environ.setdefault(threshold, str(KEPT_BYTES))
    context.set_forkserver_preload(PRELOADED)
    return context


def start_server() -> None:
    """Let the server import torch while this process still plans; it ends with this process."""
    _context()
    ensure_running()


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
    with tempfile.TemporaryDirectory() as scratch:
        paths = {name: str(write_job(job, Path(scratch) / job.run_id)) for name, job in jobs.items()}
        for i in range(0, len(order), n_parallel):
            together = [(name, *_probing(context, paths[name], seconds)) for name in order[i : i + n_parallel]]
            for name, process, connection in together:
                said = _step_time(connection)
                process.join()
                if isinstance(said, str):
                    raise RunFailed(f"the first steps of {name} failed: {said}")
                found[name].append(said)
    return {name: statistics.median(times) for name, times in found.items()}


def _probing(context: Any, path: str, seconds: float) -> tuple[Any, Any]:
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=target.measure, args=(path, seconds, theirs))
    process.start()
    theirs.close()
    return process, mine


def _step_time(connection: Any) -> float | str:
    try:
        said: float | str = connection.recv()
    except EOFError:
        return "its process was killed (out of memory?)"
    return said
