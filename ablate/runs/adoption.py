"""Whose checkpoint an attempt goes on from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablate.training.checkpoint import newest_valid


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
