"""Runs from being submitted to their end, whoever executes them: what is heard of them, what is tried again."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from ablate.parallel.lost import still, who
from ablate.runs.attempts import newest
from ablate.runs.events import Ended, Failed, Interrupted, Killed, Leaving, Listener, Progress, Started, Stopping
from ablate.runs.executors.protocol import CANCELLED, Executor, Seen
from ablate.runs.executors.signals import Stop, stopping
from ablate.runs.executors.worker import LOST, OUT_OF_MEMORY
from ablate.runs.job import Job
from ablate.runs.progress import Standing, standing
from ablate.runs.record import Failure, RunStatus
from ablate.runs.store import FAILURE, Store, read_failure

N_RETRIES = 2  # of a run whose process was killed, hung, or had no memory: it goes on from its checkpoint
LOOK_S = 0.2  # between two looks at what the attempts say

# An attempt that says nothing for as long as this is hung, and is ended. Attempts speak every half second while batches
# go through the model; in between lie a backward pass, an optimizer step, the writing of a checkpoint.
SILENT_S = 60.0
SILENT_S_PER_PARAMETER = 1e-6  # a checkpoint of a large model takes its time
SILENT_GAPS = 20  # times the longest silence that the attempt has broken in training
START_FACTOR = 10  # before the first step has ended: kernels are compiled, a teacher is loaded
MAX_LOOK_S = 1.0  # of the time between two looks that counts: this process may have been paused itself


More: TypeAlias = Callable[[Mapping[str, RunStatus]], Sequence[Job]]


@dataclass(slots=True)
class Outcome:
    """Runs by what became of them. `interrupted` is true when the study was stopped by a signal."""

    status: dict[str, RunStatus] = field(default_factory=dict)
    interrupted: bool = False


def execute_all(
    jobs: Sequence[Job],
    store: Store,
    executor: Executor,
    *,
    listener: Listener,
    key: str = "",
    more: More | None = None,
) -> Outcome:
    """Run what has no record yet. A run that fails leaves a failure and the others go on.

    The first signal lets every run stop at its next step with a checkpoint, a Ctrl-C after it ends them at once; with
    an executor whose runs outlive this process it ends only the watching. `key`: what the attempts' names begin with.
    `more`: asked again and again, with what became of the runs so far, for those that are to be run as well.
    """
    with stopping() as stop:
        conductor = _Conductor(store, executor, listener, stop, key or uuid.uuid4().hex[:8])
        try:
            conductor.add(jobs)
            conductor.ask(more)
            while conductor.watched and not (stop.requested and executor.outlives):
                conductor.heed_signals()
                conductor.take(executor.poll(LOOK_S))
                conductor.ask(more)
            if conductor.watched:
                listener(Leaving(len(conductor.watched)))
        finally:
            executor.close()
    left = more is not None or len(conductor.status) < len({job.run_id for job in jobs})
    return Outcome(status=conductor.status, interrupted=(stop.requested or conductor.cancelled) and left)


@dataclass(slots=True)
class _Watched:
    """A run that has been submitted."""

    job: Job
    key: str
    n_lost: int = 0
    running: bool = False
    heard: tuple[Path, Standing] | None = None
    silent_s: float = 0.0
    longest_s: float = 0.0
    trains: bool = False
    hung: str = ""

    @property
    def allowed_s(self) -> float:
        """Silence before the attempt counts as hung."""
        usual = SILENT_S + SILENT_S_PER_PARAMETER * self.job.n_trained
        return max(usual * (1 if self.trains else START_FACTOR), SILENT_GAPS * self.longest_s)

    def hear(self, said: tuple[Path, Standing] | None, passed_s: float) -> bool:
        """Take what the newest attempt says of itself, so long after the last look; whether that is news."""
        self.silent_s += passed_s
        if said is None or said == self.heard:
            return False
        if self.trains:
            self.longest_s = max(self.longest_s, self.silent_s)
        self.heard, self.silent_s = said, 0.0
        self.trains = self.trains or said[1].loss is not None
        return True

    def begin(self) -> None:
        """Another process is at the run now."""
        self.running, self.silent_s, self.longest_s, self.trains, self.hung = True, 0.0, 0.0, False, ""


class _Conductor:
    """The runs that were submitted and have not ended."""

    def __init__(self, store: Store, executor: Executor, listener: Listener, stop: Stop, key: str) -> None:
        self.store, self.executor, self.listener, self.stop, self.key = store, executor, listener, stop, key
        self.watched: dict[str, _Watched] = {}
        self.status: dict[str, RunStatus] = {}
        self.looked = time.monotonic()
        self.told_to_stop = self.cancelled = False

    def add(self, jobs: Sequence[Job]) -> None:
        """Submit runs, unless they have a record or were submitted before."""
        new = []
        for job in jobs:
            if status := self.store.status(job.run_id):
                self.status[job.run_id] = status
                self.listener(Ended(job.run_id, status))
            else:
                new.append(job)
        known = self.executor.adopt(new)
        for job in new:
            self.watched[job.run_id] = _Watched(job, known.get(job.run_id, f"{self.key}-0"))
        if missing := [job for job in new if job.run_id not in known]:
            self.executor.submit(missing, f"{self.key}-0")

    def ask(self, more: More | None) -> None:
        """Submit what there is beside; a run that has a record already ends at once, and makes room for another."""
        while more and not self.stop.requested and (jobs := more(self.status)):
            self.add(jobs)

    def heed_signals(self) -> None:
        if not self.stop.requested:
            return
        if not self.told_to_stop:
            self.told_to_stop = True
            self.listener(Stopping(sum(run.running for run in self.watched.values())))
            self.executor.cancel(self.watched.keys(), at_once=False)
            self.watched = {name: run for name, run in self.watched.items() if run.running}
        if self.stop.at_once:
            self.executor.cancel(self.watched.keys(), at_once=True)

    def take(self, seen: Seen) -> None:
        """What the executor has seen, and what the attempts say."""
        for identity, reason in seen.gone.items():
            if run := self.watched.get(identity):
                self._finish(run, reason)
        for identity in seen.running:
            if (run := self.watched.get(identity)) and not run.running:
                run.begin()
                self.listener(Started(identity))
        for run in self.watched.values():
            if run.running and run.job.run_id not in seen.running:
                run.running = False
                self.listener(Killed(run.job.run_id, "it was put back into the queue"))
        now = time.monotonic()
        if now - self.looked >= LOOK_S:
            passed_s, self.looked = min(now - self.looked, MAX_LOOK_S), now
            for run in self.watched.values():
                if run.running:
                    self._look(run, passed_s)

    def _look(self, run: _Watched, passed_s: float) -> None:
        """Tell how far a run is; end it if it has been silent for too long."""
        if run.hear(self._said(run), passed_s):
            assert run.heard is not None
            said = run.heard[1]
            if said.phase in ("starting", "training"):
                self.listener(Progress(run.job.run_id, said.step, said.loss, said.tokens_per_s))
        elif run.silent_s > run.allowed_s and not run.hung:
            attempt = self._attempt(run)
            hung = still(attempt) if attempt and run.job.ranks > 1 else []
            because = f": the process of {who(hung, run.job.ranks)} stands still" if hung else ""
            run.hung = f"it made no progress for {run.silent_s:.0f} seconds, and was ended{because}"
            self.executor.cancel([run.job.run_id], at_once=True)

    def _said(self, run: _Watched) -> tuple[Path, Standing] | None:
        attempt = self._attempt(run)
        said = standing(attempt) if attempt else None
        return (attempt, said) if attempt and said else None

    def _attempt(self, run: _Watched) -> Path | None:
        return newest(self.store.attempts_folder(run.job.run_id), run.key)

    def _finish(self, run: _Watched, reason: str) -> None:
        """What became of a run that nobody is at any more."""
        identity, event = run.job.run_id, self._became(run, reason)
        del self.watched[identity]
        if reason:  # it did not end by itself, and perhaps in the middle of a write
            self.store.clear(identity)
        self.listener(event)
        if isinstance(event, Killed):
            again = _Watched(run.job, f"{self.key}-{run.n_lost + 1}", run.n_lost + 1)
            self.watched[identity] = again
            self.executor.submit([run.job], again.key)
        elif isinstance(event, Ended):
            self.status[identity] = event.status
        elif isinstance(event, Failed):
            self.status[identity] = "failed"

    def _became(self, run: _Watched, reason: str) -> Ended | Failed | Interrupted | Killed:
        identity, attempt = run.job.run_id, self._attempt(run)
        try:
            # The same run may have been another command's too, which was faster.
            if status := self.store.status(identity):
                return Ended(identity, status)
            note = read_failure(attempt / FAILURE) if attempt and (attempt / FAILURE).exists() else None
        except ValueError as error:
            return Failed(identity, str(error))
        if note and not self._passes(note.reason):
            return Failed(identity, note.reason, note.traceback)
        if self.stop.requested:
            return Interrupted(identity)
        if reason.startswith(CANCELLED) and not run.hung:
            self.cancelled = True
            return Interrupted(identity)
        said = standing(attempt) if attempt else None
        stopped = "it was stopped by a signal" if said and said.phase == "stopped" else ""
        reason = run.hung or (note.reason if note else "") or stopped or reason or "its process left no word"
        if run.n_lost < N_RETRIES:
            return Killed(identity, reason)
        reason = f"{reason}, {run.n_lost + 1} times"
        self.store.note_failure(_failure(run.job, reason), None if note else attempt)
        return Failed(identity, reason)

    def _passes(self, reason: str) -> bool:
        """Whether a failure may be another one's doing, so that the run is tried again."""
        return reason.startswith(LOST) or (reason.startswith(OUT_OF_MEMORY) and not self.executor.outlives)


def _failure(job: Job, reason: str) -> Failure:
    return Failure(
        run_id=job.run_id,
        variant=dict(job.variant),
        seed=job.run.seed,
        reason=reason,
        traceback="",
        time_s=time.time(),
    )
