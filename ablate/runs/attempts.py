"""Who is at work: which attempts at a run are still going on and whose they are, which commands conduct a study."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

COMMANDS = "commands"  # in a study's folder: a file for each command that is at it, host-process, held as attempts are
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


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Let this process be found as one that conducts the study in a folder, for as long as this lasts, or it."""
    path = folder / COMMANDS / f"{socket.gethostname()}-{os.getpid()}"
    with ExitStack() as stack:
        with suppress(OSError):  # a command that cannot say so is not found, and that is all
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "w"))
            stack.callback(_remove, path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def commands(folder: Path) -> list[int]:
    """Processes of this machine that conduct the study in a folder; what a killed one left is removed."""
    found, here = [], f"{socket.gethostname()}-"
    for path in (folder / COMMANDS).glob(f"{here}*"):
        process = int(path.name.removeprefix(here))
        with suppress(OSError), open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(process)
            else:
                _remove_unless_it_lives(process, path)
    return found


def _remove_unless_it_lives(process: int, path: Path) -> None:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        _remove(path)


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
