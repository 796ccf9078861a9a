"""The real command line in processes forked from one that has imported everything: a try costs a second or two.

It differs from a command started by hand in this: workers are forked, not started by a forkserver; speeds are not
measured; every step is followed by a checkpoint; a worker that is silent for half a minute is taken to hang;
report.html has the Markdown, since figures take longer than such a study.
"""

from __future__ import annotations

import errno
import logging
import mmap
import multiprocessing
import os
import resource
import signal
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ablate.cli
import ablate.report as reports
import ablate.runs.conduct as conduct
import ablate.runs.execute as execute
import ablate.runs.executors.local as local
import ablate.runs.executors.worker as worker
import ablate.sweep.run as sweep

WRITES = ("fsync", "link", "replace", "rename", "mkdir")
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


@dataclass(frozen=True, slots=True)
class Command:
    """A command that runs in a process group of its own; `log` holds all that it prints."""

    pid: int
    log: Path

    def wait(self, seconds: float) -> int | None:
        """Its exit code (negative: the signal that ended it); None if it still runs after so many seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        return None

    @property
    def state(self) -> str:
        """The letter of its state in /proc (T: stopped); "" once it has ended."""
        try:
            letter = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2][:1]
        except OSError:
            return ""
        return "" if letter in "ZX" else letter

    def kill(self) -> None:
        """End it and everything it started."""
        self.signal_group(signal.SIGKILL)
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            return  # it had been waited for

    def signal_group(self, number: int) -> None:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return  # nobody is left

    def workers(self) -> list[int]:
        """The processes that it has started and that still run."""
        try:
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except OSError:
            return []

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")


def start(arguments: Sequence[str], *, log: Path, cache: Path, prepare: Callable[[], Any] | None = None) -> Command:
    """`dsv3-ablate` with these arguments; `prepare` is called in its process before it begins."""

    def act() -> int:
        _make_cheap()
        if prepare is not None:
            prepare()
        sys.argv = ["dsv3-ablate", *arguments]
        return _exit_code()

    return spawn(act, log=log, cache=cache)


def spawn(act: Callable[[], int], *, log: Path, cache: Path) -> Command:
    """A function in a process forked from this one, in a session of its own; its result is the exit code."""
    log.write_bytes(b"")
    pid = os.fork()
    if pid:
        return Command(pid, log)
    code = 98
    try:
        _detach(log, cache)
        code = act()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _detach(log: Path, cache: Path) -> None:
    """A session of its own, with the streams, signals, handlers and warnings that a fresh interpreter has."""
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.environ.update(XDG_CACHE_HOME=str(cache), COLUMNS="400")
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.getLogger().handlers.clear()
    warnings.resetwarnings()
    warnings.simplefilter("ignore")


def _make_cheap() -> None:
    changes: Sequence[tuple[Any, str, Any]] = (
        (local, "_context", lambda: multiprocessing.get_context("fork")),
        (conduct, "SILENT_S", 30.0),
        (conduct, "START_FACTOR", 4),
        (worker, "REUSED_S", 0.0),
        (sweep, "start_server", lambda: None),
        (sweep, "measure_all", lambda jobs, **_: dict.fromkeys(jobs, 0.1)),
        (execute, "CHECKPOINT_EVERY_S", 0.0),
        (reports, "RENDERERS", dict.fromkeys(reports.RENDERERS, reports.to_markdown)),
    )
    for module, name, value in changes:
        setattr(module, name, value)


def _exit_code() -> int:
    from multiprocessing import util

    try:
        ablate.cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    else:
        code = 0
    util._exit_function()
    return code


class Writes:
    """Counts the calls that make files durable, over all processes of a command, and does something at one of them."""

    def __init__(self) -> None:
        self.shared = mmap.mmap(-1, 8)

    @property
    def n(self) -> int:
        return struct.unpack("q", self.shared[:8])[0]

    def watch(self, act: Callable[[int, str], None]) -> Callable[[], None]:
        """What to call in the command's process: from then on `act(number of the call, path)` goes before each call."""

        def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*given: Any, **options: Any) -> Any:
                n = self.n + 1
                self.shared[:8] = struct.pack("q", n)
                act(n, str(given[0]))
                return real(*given, **options)

            return call

        def install() -> None:
            for name in WRITES:
                setattr(os, name, wrap(getattr(os, name)))

        return install


def refuse(number: int) -> None:
    """What the system does when it refuses a write."""
    raise OSError(number, os.strerror(number))


def limit_files(n_bytes: int) -> None:
    """No file of this process and those it starts can grow beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
