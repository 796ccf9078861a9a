"""What was given to Slurm, and what Slurm says of it: files of the study, and its queue. No database, no memory.

A submission is an array job of the name that its file has. The file is written first, so that whatever is in the queue
can be told from any login node, also after the shell that submitted it was killed in between.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ablate.documents import read_sealed_document
from ablate.files import check_names, commit_once, sealed
from ablate.runs.store import Store
from ablate.spec.decoding import FORBID_UNKNOWN, decode, encode

PREFIX = "dsv3-"
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
RUNNING = {"RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED", "RESIZING"}
FIELDS = "%j|%K|%F|%T"  # name, index in the array, the array's number, state
PATIENCE_S = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """Runs in the order of an array's indices. Their attempts have `key` in their names."""

    name: str
    key: str
    cluster: str
    runs: tuple[str, ...]

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN

    def __post_init__(self) -> None:
        check_names((self.name, self.key, *self.runs), "a name in the submission")


@dataclass(frozen=True, slots=True)
class Task:
    """A run in Slurm's queue, or one that has just left it."""

    run: str
    key: str
    job: str  # as scancel and scontrol name it
    state: str

    @property
    def runs(self) -> bool:
        return self.state in RUNNING

    @property
    def active(self) -> bool:
        return self.state in RUNNING or self.state in WAITING


def folder(store: Store) -> Path:
    """Submissions, scripts and logs of a study."""
    return store.folder / "slurm"


def write_submission(store: Store, submission: Submission) -> Path:
    path = folder(store) / f"{submission.name}.json"
    commit_once(path, sealed(encode(submission)), "the submission")
    return path


def read_submission(path: Path) -> Submission:
    """ValueError if the file was altered."""
    data = read_sealed_document(path, "the submission", "give the study's command again: it submits what is left")
    return decode(Submission, data, str(path))


def queued(store: Store) -> list[Task] | None:
    """What the queue says of a study's runs; None if Slurm does not answer now. ValueError where there is no Slurm."""
    known = {path.stem: read_submission(path) for path in sorted(folder(store).glob(f"{PREFIX}*.json"))}
    if not known:
        return []
    answer = ask(["squeue", "--noheader", "--array", "--me", "--states=all", f"--format={FIELDS}"])
    return None if answer is None else list(_tasks(answer, known))


def _tasks(answer: str, known: dict[str, Submission]) -> Iterator[Task]:
    for line in answer.splitlines():
        name, index, array, state = line.strip().split("|")
        if (submission := known.get(name)) and index.isdigit() and int(index) < len(submission.runs):
            yield Task(submission.runs[int(index)], submission.key, f"{array}_{index}", state)


def end(tasks: Sequence[Task]) -> None:
    """Let Slurm end tasks: a run that goes on is asked to stop with a checkpoint first."""
    jobs = [task.job for task in tasks if task.active]
    for i in range(0, len(jobs), 500):
        ask(["scancel", *jobs[i : i + 500]])


def ask(command: list[str]) -> str | None:
    """What a command of Slurm's prints; None if it fails, which passes where its controller is restarted."""
    if shutil.which(command[0]) is None:
        raise ValueError(f"{command[0]} is not on this machine; give the command on one of the cluster's login nodes")
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
