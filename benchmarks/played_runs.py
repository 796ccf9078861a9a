"""Runs that are played and not trained: a loss by formula after a moment, committed as a real run's record is."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from ablate.randomness import fraction
from ablate.runs.conduct import More, Outcome
from ablate.runs.events import Ended, Listener
from ablate.runs.job import Job
from ablate.runs.record import RunRecord
from ablate.runs.store import Store
from ablate.spec.decoding import encode

SECONDS = 0.15  # of a played run
BEST = {True: 0.006, False: 0.004}  # learning rate with multi-token prediction and without
NOISE = 0.002
DIVERGES_ABOVE = 0.03


def loss(job: Job) -> float:
    """A parabola in octaves around the variant's own best rate; more steps are better; a little noise by seed."""
    with_mtp = job.variant["mtp"] == "on"
    octaves = math.log2(job.run.trainer.learning_rate / BEST[with_mtp])
    noise = NOISE * (fraction(f"{job.run.seed} {job.run_id}") - 0.5)
    return 4.0 - 0.05 * with_mtp + 0.05 * octaves**2 + 1 / math.sqrt(job.run.n_steps) + noise


def record(job: Job, *, seconds: float) -> RunRecord:
    diverged = job.run.trainer.learning_rate > DIVERGES_ABOVE
    speed = {"step_s": 0.1, "tokens_per_s": 1e3 + job.run.n_steps, "peak_memory_bytes": 1e8, "training_s": 1.0}
    metrics = {"nats_per_token": loss(job), "bits_per_byte": 2.0, "seconds": seconds} | speed
    return RunRecord(
        run_id=job.run_id,
        status="diverged" if diverged else "finished",
        reason="the loss was not finite" if diverged else "",
        spec=encode(job.run),
        variant=dict(job.variant),
        metrics={"diverged_step": 1.0} if diverged else metrics,
        order_hash=f"order {job.run.seed}",
        backends={"device": "cpu"},
        evidence={"loss": "measured", "speed": "measured", "memory": "measured"},
    )


def execute_all(
    jobs: Sequence[Job],
    store: Store,
    executor: Any,
    *,
    listener: Listener,
    more: More = lambda status: (),
    seconds: float = SECONDS,
) -> Outcome:
    """As it is with any executor: what has a record is not run again; every attempt has its folder."""
    outcome, waiting = Outcome(), deque(jobs)
    while waiting.extend(more(outcome.status)) or waiting:
        job = waiting.popleft()
        found = store.read(job.run_id)
        if found is None:
            store.new_attempt(job.run_id)
            time.sleep(seconds)
            found = record(job, seconds=seconds)
            store.commit(found)
        outcome.status[job.run_id] = found.status
        listener(Ended(job.run_id, found.status))
    return outcome


def play(patch: Any, seconds: float = SECONDS) -> None:
    """Put the played executor in the place of the real one; `patch` sets attributes (pytest's monkeypatch does)."""
    import functools

    import ablate.sweep.run
    import ablate.sweep.search.conduct

    for module in (ablate.sweep.run, ablate.sweep.search.conduct):
        patch.setattr(module, "execute_all", functools.partial(execute_all, seconds=seconds))
    patch.setattr(ablate.sweep.run, "measure_all", lambda jobs, **_: dict.fromkeys(jobs, 0.01))


class Quiet:
    """A display that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def show_plan(self, plan: Any, n_parallel: int, folder: Any, time: Any) -> None: ...

    def follow(self, plan: Any, n_parallel: int) -> Listener:
        return lambda event: None

    def end(self) -> None: ...
