"""One run in a process of its own: tells its parent how far it is, and what became of it."""

from __future__ import annotations

import signal
import tempfile
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ablate.runs.job import Job
from ablate.runs.store import Store

# torch is imported inside, so that the parent, which only names these functions, never loads it
HEAVY = "ablate.runs.execute"


def run(job: Job, folder: Path, connection: Connection) -> None:
    """Messages: ("progress", step, loss, tokens per second), then ("done", status) or what went wrong."""

    def tell(step: int, loss: float, tokens_per_s: float) -> bool:
        try:
            connection.send(("progress", step, loss, tokens_per_s))
        except OSError:
            return False  # the parent is gone: stop with a checkpoint
        return True

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until the run listens: Ctrl-C reaches the whole group
    try:
        message = _execute(job, Store(folder), tell)
    except Exception as error:
        message = ("failed", _reason(error), traceback.format_exc())
    _send(connection, message)


def _execute(job: Job, store: Store, tell: Any) -> tuple[Any, ...]:
    from ablate.runs.execute import execute
    from ablate.training.callbacks import Interrupted

    try:
        record = execute(job, store, tell, listen=True)
    except Interrupted:
        return ("interrupted",)
    return ("done", record.status if record else "finished")


def measure(job: Job, connection: Connection) -> None:
    """Messages: ("step_s", seconds of an optimizer step), or ("failed", reason, traceback)."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from ablate.runs.execute import probe

        with tempfile.TemporaryDirectory() as scratch:
            message: tuple[Any, ...] = ("step_s", probe(job, Path(scratch)))
    except Exception as error:
        message = ("failed", _reason(error), traceback.format_exc())
    _send(connection, message)


def _send(connection: Connection, message: tuple[Any, ...]) -> None:
    try:
        connection.send(message)
    except OSError:
        return  # nobody is there to be told; the files say it


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"
