"""Where a study stands, from its files and Slurm's queue alone: for any shell on any machine that sees them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ablate.runs.attempts import commands, is_going_on, newest
from ablate.runs.executors.submission import Task, end, queued
from ablate.runs.plan import PlannedVariant, read_plan
from ablate.runs.progress import Standing, standing
from ablate.runs.store import FAILURE, Store, read_failure
from ablate.runs.study import read_study, to_toml
from ablate.sweep.folder import RESULTS

State = Literal["finished", "diverged", "running", "waiting", "failed", "missing"]
STATES: tuple[State, ...] = ("finished", "diverged", "running", "waiting", "failed", "missing")


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenRun:
    """A run that has no record yet. `detail`: why it failed, or where it is."""

    run_id: str
    variant: str
    seed: int
    state: State
    detail: str = ""
    step: int = 0
    n_steps: int = 0
    loss: float | None = None
    tokens_per_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyStatus:
    """Where a study stands: how many runs of each variant are in each state, and those without a record one by one."""

    folder: str
    question: str
    variants: dict[str, dict[State, int]]
    open: tuple[OpenRun, ...]
    left_s: float | None  # at the pace of what is running; None where nothing says

    def count(self, *states: State) -> int:
        return sum(counts.get(state, 0) for counts in self.variants.values() for state in states)

    @property
    def n_runs(self) -> int:
        return self.count(*STATES)


def find_study(place: Path) -> Path:
    """The folder of a study from itself, or from its study file; ValueError if there is none, or more than one."""
    if place.is_dir():
        if not Store(place).plan_file.exists():
            raise ValueError(f"{place} holds no study; give the folder that `sweep` said, or the study file")
        return place
    text = to_toml(read_study(place))
    found = [path.parent for path in sorted(RESULTS.glob("*/study.toml")) if path.read_text(encoding="utf-8") == text]
    if len(found) != 1:
        several = f"{', '.join(map(str, found))} are of {place}" if found else f"no folder in {RESULTS} is of {place}"
        raise ValueError(f"{several}; give the folder of the study")
    return found[0]


def look(folder: Path) -> StudyStatus:
    """Where the study in a folder stands now."""
    store = Store(folder)
    plan = read_plan(store.plan_file)
    tasks = {task.run: task for task in queued(store) or [] if task.active}
    counts: dict[str, dict[State, int]] = {}
    left = []
    for variant in plan.variants:
        own = counts.setdefault(variant.name, {})
        for seed, identity in zip(variant.seeds, variant.run_ids, strict=True):
            state: State | None = store.status(identity)
            if state is None:
                run = _open(store, variant, seed, identity, tasks.get(identity))
                state = run.state
                left.append(run)
            own[state] = own.get(state, 0) + 1
    return StudyStatus(
        folder=str(folder), question=plan.question, variants=counts, open=tuple(left), left_s=_left_s(store, left)
    )


def _open(store: Store, variant: PlannedVariant, seed: int, identity: str, task: Task | None) -> OpenRun:
    attempts = store.attempts_folder(identity)
    attempt = newest(attempts, task.key if task else "")
    said = (standing(attempt) if attempt else None) or Standing(phase="starting")
    state, detail = _state(attempts, attempt, task)
    return OpenRun(
        run_id=identity,
        variant=variant.name,
        seed=seed,
        state=state,
        detail=detail,
        step=said.step if state == "running" else 0,
        n_steps=variant.n_all_steps,
        loss=said.loss if state == "running" else None,
        tokens_per_s=said.tokens_per_s if state == "running" else 0.0,
    )


def _state(attempts: Path, attempt: Path | None, task: Task | None) -> tuple[State, str]:
    if task:
        return ("running" if task.runs else "waiting"), f"Slurm job {task.job}"
    if attempt is None:
        return "missing", ""
    if is_going_on(attempts):
        return "running", ""
    if (attempt / FAILURE).exists():
        return "failed", read_failure(attempt / FAILURE).reason
    return "missing", ""


def _left_s(store: Store, left: list[OpenRun]) -> float | None:
    """Steps that are left, over the steps a second of what is running."""
    if not left:
        return 0.0
    speeds = list(_steps_per_s(store, left))
    if not speeds or not (together := sum(speeds)):
        return None
    return sum(run.n_steps - run.step for run in left if run.state in ("running", "waiting")) / together


def _steps_per_s(store: Store, left: list[OpenRun]) -> Iterator[float]:
    tokens_per_step = read_plan(store.plan_file).tokens_per_step
    yield from (run.tokens_per_s / tokens_per_step for run in left if run.state == "running" and run.tokens_per_s)


def cancel_study(folder: Path) -> tuple[int, int]:
    """End a study's runs in Slurm's queue, and ask the commands on this machine that conduct it to stop.

    How many runs and how many commands these were. Each run stops at its next step, with a checkpoint.
    """
    commanding = commands(folder)
    for process in commanding:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
    if (tasks := queued(Store(folder))) is None:
        raise ValueError("Slurm does not answer; try again later")
    active = [task for task in tasks if task.active]
    end(active)
    return len(active), len(commanding)
