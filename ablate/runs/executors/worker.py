"""One run in a process of its own: tells its parent how far it is, and what became of it."""

from __future__ import annotations

import signal
import tempfile
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ablate.runs.events import Ended, Failed, Interrupted, Progress, StepTime
from ablate.runs.job import Job
from ablate.runs.store import Store

# torch is imported inside, so that the parent, which only names these functions, never loads it
HEAVY = "ablate.runs.execute"


def run(job: Job, folder: Path, connection: Connection) -> None:
    """Send `Progress` now and then, and at the end what became of the run: `Ended`, `Failed` or `Interrupted`."""

    def tell(step: int, loss: float, tokens_per_s: float) -> bool:
        try:
            connection.send(Progress(job.run_id, step, loss, tokens_per_s))
        except OSError:
            return False  # the parent is gone: stop with a checkpoint
        return True

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until the run listens: Ctrl-C reaches the whole group
    try:
        message = _execute(job, Store(folder), tell)
    except Exception as error:
        message = _failed(job, error)
    _send(connection, message)


def _execute(job: Job, store: Store, tell: Any) -> Ended | Failed | Interrupted:
    from ablate.runs.execute import execute
    from ablate.training.callbacks import Interrupted as Stopped

    try:
        record = execute(job, store, tell, listen=True)
    except Stopped:
        return Interrupted(job.run_id)
    return Ended(job.run_id, record.status if record else "finished")


def measure(job: Job, connection: Connection) -> None:
    """Send `StepTime`, or `Failed`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from ablate.runs.execute import probe

        with tempfile.TemporaryDirectory() as scratch:
            message: StepTime | Failed = StepTime(probe(job, Path(scratch)))
    except Exception as error:
        message = _failed(job, error)
    _send(connection, message)


def _send(connection: Connection, message: Any) -> None:
    try:
        connection.send(message)
    except OSError:
        return  # nobody is there to be told; the files say it


def _failed(job: Job, error: Exception) -> Failed:
    text = str(error).strip().splitlines()
    return Failed(job.run_id, f"{type(error).__name__}: {text[0] if text else 'no message'}", traceback.format_exc())
