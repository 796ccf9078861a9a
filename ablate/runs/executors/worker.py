"""Runs in a process of their own. What becomes of a run is in its folder: how far it is, its failure, its record."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ablate.parallel.lost import end_with, is_loss, missing, present, still, who
from ablate.runs.executors import torchrun
from ablate.runs.executors.signals import stopping
from ablate.runs.job import Job
from ablate.runs.job_file import read_job
from ablate.runs.progress import Standing, tell
from ablate.runs.record import Failure
from ablate.runs.redaction import redacted
from ablate.runs.store import Store

# torch is imported inside, so that the parent, which only names these functions, never loads it
OUT_OF_MEMORY = "out of memory"
LOST = "lost a rank"
GRACE_S = 5.0  # for the rank that fails to say why, before the others say that they miss it
# As CUDA, torch on Windows, torch on Linux and the system say it.
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")

# A forked process costs as much as the memory that it copies, tens of milliseconds. One that has used less of a
# processor than this takes another run: real runs are always alone in theirs.
REUSED_S = 1.0


class RankLost(Exception):
    """Another rank of the run is gone. The run can be tried again: what failed is said by that rank, if it could."""


def serve(connection: Any) -> None:
    """Do runs as they are handed over, (file, key) each, until one was long enough or there are no more.

    After each but the last, True says that another one is taken. Ends at a signal, or when the parent is gone, with a
    checkpoint of the run that goes on.
    """
    parent, begun = os.getppid(), time.process_time()
    os.set_inheritable(connection.fileno(), True)  # torchrun too, if this becomes one, is gone when its end is closed
    with stopping() as stop:  # Ctrl-C reaches the whole group

        def must_stop() -> bool:
            return stop.requested or os.getppid() != parent

        generators = None
        while given := _handed_over(connection, must_stop):
            generators = _forget_the_last(generators)
            work(Path(given[0]), given[1], must_stop)
            if must_stop() or time.process_time() - begun >= REUSED_S:
                return
            with suppress(OSError):
                connection.send(True)


def _handed_over(connection: Any, must_stop: Callable[[], bool]) -> tuple[str, str] | None:
    try:
        while not connection.poll(0.5):
            if must_stop():
                return None
        given: tuple[str, str] = connection.recv()
    except (EOFError, OSError):
        return None
    return given


def _forget_the_last(generators: Any) -> Any:
    """Let a run find what it would find in a new process: the generators' states, and no peak of memory but its own."""
    from ablate.training.checkpoint import random_state, restore_random_state

    if generators is None:
        return random_state()
    restore_random_state(generators)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return generators


def work(path: Path, key: str, must_stop: Callable[[], bool]) -> None:
    """One attempt at the run of a job file. Nothing is raised: what went wrong is noted in the attempt's folder."""
    store = Store(path.parents[2])
    try:
        attempt = store.new_attempt(path.parent.name, key)
    except OSError as error:
        print(f"cannot begin run {path.parent.name} in {store.folder}: {error}", file=sys.stderr)
        return
    try:
        job = read_job(path)
    except Exception as error:
        _note(store, attempt, path.parent.name, None, error)
        return
    if job.ranks > 1:
        command = torchrun.command(torchrun.Layout(ranks=job.ranks), path, attempt)
        os.environ.setdefault("OMP_NUM_THREADS", str(job.n_threads))  # torchrun would choose, and say so at length
        torchrun.prepare()
        os.execv(command[0], command)
    attempt_at(job, store, attempt, must_stop)


def attempt_at(
    job: Job, store: Store, attempt: Path, must_stop: Callable[[], bool], *, speaks: bool = True
) -> bool:  # fmt: skip
    """One attempt at a run, in a folder that was made for it. One of its ranks `speaks`; each may note a failure.

    Returns whether another rank was lost: its process may be there still, and has to be ended.
    """

    def say(phase: Any, step: int = 0, loss: float | None = None, tokens_per_s: float = 0.0) -> None:
        if speaks:
            tell(
                attempt,
                Standing(phase=phase, step=step, n_steps=job.n_all_steps, loss=loss, tokens_per_s=tokens_per_s),
            )

    say("starting")
    from ablate.runs.execute import execute
    from ablate.training.callbacks import Interrupted

    try:
        execute(job, store, lambda *figures: say("training", *figures), must_stop, attempt=attempt)
    except Interrupted:
        say("stopped")
    except Exception as error:
        error = _of_this_rank(error, job, attempt)
        _note(store, attempt, job.run_id, job, error)
        say("failed")
        return isinstance(error, RankLost)
    else:
        say("ended", job.n_all_steps)
    return False


def _of_this_rank(error: Exception, job: Job, attempt: Path) -> Exception:
    """The error, or which rank it comes of: a connection breaks on all ranks where one has failed."""
    if job.ranks == 1 or not is_loss(error):
        return error
    time.sleep(GRACE_S)
    if gone := missing(attempt):
        return RankLost(f"{LOST}: the process of {who(gone, job.ranks)} has ended")
    if hung := still(attempt):
        return RankLost(f"{LOST}: the process of {who(hung, job.ranks)} stands still")
    return RankLost(f"{LOST}: one of {job.ranks} does not answer ({str(error).strip().splitlines()[0]})")


def _note(store: Store, attempt: Path, run_id: str, job: Job | None, error: Exception) -> None:
    text = str(error).strip().splitlines()
    name = "" if isinstance(error, RankLost) else f"{type(error).__name__}: "
    reason = name + (text[0] if text else "no message")
    if isinstance(error, MemoryError) or any(words in reason.lower() for words in NO_MEMORY):
        reason = f"{OUT_OF_MEMORY} ({reason})"
    failure = Failure(
        run_id=run_id,
        variant=dict(job.variant) if job else {},
        seed=job.run.seed if job else 0,
        reason=redacted(reason),
        traceback=redacted(traceback.format_exc()),
        time_s=time.time(),
    )
    store.note_failure(failure, attempt)


def measure(path: str, seconds: float, connection: Any) -> None:
    """Send the seconds of an optimizer step of a job file's run, or the sentence that says why there are none."""
    import tempfile

    with stopping() as stop:
        try:
            from ablate.runs.execute import probe

            with tempfile.TemporaryDirectory() as scratch:
                found: float | str = probe(read_job(Path(path)), Path(scratch), seconds)
        except Exception as error:
            text = str(error).strip().splitlines()
            found = redacted(f"{type(error).__name__}: {text[0] if text else 'no message'}")
    if not stop.requested:
        with suppress(OSError):
            connection.send(found)


def main(arguments: list[str]) -> int:
    """A rank of a run: its job file, and the folder that all ranks of this attempt share.

    The exit code is 1 where another rank was lost: then torchrun ends all that are left.
    """
    job, attempt = read_job(Path(arguments[0])), Path(arguments[1])
    store, rank = Store(Path(arguments[0]).parents[2]), int(os.environ.get("RANK", "0"))
    end_with(os.getppid())
    with stopping() as stop, present(attempt, rank):
        lost = attempt_at(job, store, attempt, lambda: stop.requested, speaks=rank == 0)
    return int(lost)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
