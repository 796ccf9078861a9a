"""One run in a process of its own: tells its parent how far it is, and what became of it."""

from __future__ import annotations

import signal
import tempfile
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ablate.runs.events import Ended, Failed, Interrupted, Progress, StepTime
from ablate.runs.executors.signals import Stop, stopping
from ablate.runs.job import Job
from ablate.runs.store import Store

# torch is imported inside, so that the parent, which only names these functions, never loads it
HEAVY = "ablate.runs.execute"


def run(job: Job, folder: Path, connection: Connection) -> None:
    """Send `Progress` now and then, and at the end what became of the run: `Ended`, `Failed` or `Interrupted`."""
    with stopping() as stop:  # Ctrl-C reaches the whole group

        def tell(step: int, loss: float | None, tokens_per_s: float) -> None:
            try:
                connection.send(Progress(job.run_id, step, loss, tokens_per_s))
            except OSError:
                stop.requested = True  # the parent is gone: stop with a checkpoint

        try:
            message = _execute(job, Store(folder), tell, stop)
        except Exception as error:
            message = _failed(job, error)
        _send(connection, message)


def _execute(job: Job, store: Store, tell: Any, stop: Stop) -> Ended | Failed | Interrupted:
    from ablate.runs.execute import execute
    from ablate.training.callbacks import Interrupted as Stopped

    try:
        record = execute(job, store, tell, lambda: stop.requested)
    except Stopped:
        return Interrupted(job.run_id)
    return Ended(job.run_id, record.status)


def measure(job: Job, seconds: float, connection: Connection) -> None:
    """Send `StepTime`, or `Failed`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from ablate.runs.execute import probe

        with tempfile.TemporaryDirectory() as scratch:
            message: StepTime | Failed = StepTime(probe(job, Path(scratch), seconds))
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
