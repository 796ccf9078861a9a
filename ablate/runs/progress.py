"""How far an attempt is, in a file of its own folder: for whoever watches, on this machine or on another."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from ablate.documents import read_json

PROGRESS = "progress.json"
WRITTEN = ".progress"  # what becomes it; an attempt's folder has one writer, so the name can be always the same

Phase = Literal["starting", "training", "stopped", "failed", "ended"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Where an attempt stands. `loss` is the main head's in the last optimizer step; None before one has ended."""

    phase: Phase
    step: int = 0
    n_steps: int = 0  # of trunk and branches together
    loss: float | None = None
    tokens_per_s: float = 0.0
    time_s: float = 0.0  # since the epoch, by the clock of `host`: for people, nothing is decided by it
    host: str = ""
    process: int = 0


def tell(attempt: Path, standing: Standing) -> None:
    """Put the file in place whole. It is not forced to the disk, and a disk that refuses it stops no run."""
    loss = standing.loss if standing.loss is not None and math.isfinite(standing.loss) else None
    data = asdict(standing) | {
        "loss": loss,
        "time_s": time.time(),
        "host": socket.gethostname(),
        "process": os.getpid(),
    }
    with suppress(OSError):
        (attempt / WRITTEN).write_text(json.dumps(data), encoding="utf-8")
        os.replace(attempt / WRITTEN, attempt / PROGRESS)


def standing(attempt: Path) -> Standing | None:
    """Where an attempt stands; None if it has said nothing yet, or nothing that can be read."""
    try:
        found = Standing(**read_json(attempt / PROGRESS, "how far the attempt is", ""))
    except (ValueError, TypeError):
        return None
    return found if found.phase in get_args(Phase) else None
