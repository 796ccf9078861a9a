"""Ranks that are gone: how the others notice, how they find out which one it was, and that none outlives its agent."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PLACE = "rank-{:05d}.lock"
DIES_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG


def is_loss(error: BaseException) -> bool:
    """Whether an error says that another rank is gone: a broken connection, or no word from it for too long."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


@contextmanager
def present(attempt: Path, rank: int) -> Iterator[None]:
    """Hold a rank's place in the folder of an attempt; the system lets go of it however the process ends."""
    with open(attempt / PLACE.format(rank), "w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def missing(attempt: Path) -> list[int]:
    """The ranks that had a place in an attempt and have let go of it; none where the file system has no locks."""
    return [int(file.stem.partition("-")[2]) for file in _places(attempt) if _free(file)]


def anybody_left(attempt: Path) -> bool:
    """Whether some rank still holds its place in an attempt; so it seems where the file system has no locks."""
    return not all(map(_free, _places(attempt)))


def _places(attempt: Path) -> list[Path]:
    return sorted(attempt.glob(PLACE.format(0)[:5] + "*"))


def _free(file: Path) -> bool:
    with open(file, "a") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def end_with(parent: int) -> None:
    """End this process at once when its parent is gone, even while it waits for another rank. On Linux; else nothing.

    A rank whose agent was killed has nobody who would start it again, and another attempt may be under way.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
