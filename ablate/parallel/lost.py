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
from threading import Event, Thread

PLACE = "rank-{:05d}.lock"
NOW = "now"  # a file whose time is that of the file system, which all ranks share, whatever their clocks say
SIGN_S = 2.0  # between two signs of life of a rank
QUIET_S = 10.0  # without one: then the process stands still
DIES_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG


def is_loss(error: BaseException) -> bool:
    """Whether an error says that another rank is gone: a broken connection, or no word from it for too long."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


@contextmanager
def present(attempt: Path, rank: int) -> Iterator[None]:
    """Hold a rank's place in the folder of an attempt; the system lets go of it however the process ends.

    The place's time says when the process last ran at all. It says nothing of training, which may wait for another rank
    meanwhile: of ranks that all wait, the one that stands still is told by it.
    """
    path, ended = attempt / PLACE.format(rank), Event()

    def live() -> None:
        while not ended.wait(SIGN_S):
            with suppress(OSError):
                os.utime(path)

    with open(path, "w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        Thread(target=live, name="signs of life", daemon=True).start()
        try:
            yield
        finally:
            ended.set()


def missing(attempt: Path) -> list[int]:
    """The ranks that had a place in an attempt and have let go of it; none where the file system has no locks."""
    return [rank for rank, file in _places(attempt) if _free(file)]


def anybody_left(attempt: Path) -> bool:
    """Whether some rank still holds its place in an attempt; so it seems where the file system has no locks."""
    return not all(_free(file) for _, file in _places(attempt))


def still(attempt: Path) -> list[int]:
    """The ranks whose processes are there and have not run for `QUIET_S`: stopped, frozen, or on a lost machine."""
    try:
        (attempt / NOW).touch()
        now = (attempt / NOW).stat().st_mtime
        return [rank for rank, file in _places(attempt) if now - file.stat().st_mtime > QUIET_S and not _free(file)]
    except OSError:
        return []


def who(ranks: list[int], n_ranks: int) -> str:
    """These of so many ranks, in words."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} of {n_ranks}"


def _places(attempt: Path) -> list[tuple[int, Path]]:
    return [(int(file.stem.partition("-")[2]), file) for file in sorted(attempt.glob(PLACE.format(0)[:5] + "*"))]


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
