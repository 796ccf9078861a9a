"""Attempts at a run: which of them are still going on, and whose checkpoint is gone on from."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ablate.training.checkpoint import newest_valid

LOCK = "lock"  # held by the process of an attempt, so that the system lets go of it however that process ends


@contextmanager
def held(attempt: Path) -> Iterator[None]:
    """Mark an attempt as going on for as long as this lasts, or the process.

    On a file system without locks every attempt counts as going on (`ended`), so that nothing of it is removed.
    """
    with open(attempt / LOCK, "w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def newest(attempts: Path, key: str) -> Path | None:
    """The youngest of a run's attempts that were submitted under a key, or one that begins with it."""
    try:
        names = [name for name in os.listdir(attempts) if name.partition("-")[2].startswith(key)]
    except FileNotFoundError:
        return None
    return attempts / max(names) if names else None


def is_going_on(attempts: Path) -> bool:
    """Whether a process of this machine is at one of a run's attempts."""
    return attempts.is_dir() and any(_going_on(attempt) for attempt in sorted(attempts.iterdir(), reverse=True))


def ended(attempts: Path) -> list[Path]:
    """The attempts in a run's folder that no process is at any more."""
    return [attempt for attempt in sorted(attempts.iterdir()) if not _going_on(attempt)]


def _going_on(attempt: Path) -> bool:
    if not (attempt / LOCK).exists():
        return False  # of a version without locks, or so new that it has nothing yet
    with open(attempt / LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def adopt(attempts: Path, attempt: Path, program: Mapping[str, Any], branch: str = "") -> Path | None:
    """The newest valid checkpoint of any attempt, as one of `attempt`'s own: its owner may go on and remove it.

    `branch`: the name of a branch of the run, or "" for its trunk.
    """
    while found := newest_valid(attempts, program, branch):
        own = attempt / found.name
        own.mkdir()
        try:
            for file in found.iterdir():
                os.link(file, own / file.name)
        except FileNotFoundError:
            shutil.rmtree(own)
            continue
        return own
    return None
