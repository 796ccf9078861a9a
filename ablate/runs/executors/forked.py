"""Imported by the server that forks workers, once: what a run needs, and no signal that is meant for the runs.

A signal to all processes of a command stops its workers with a checkpoint; the server ends when the command does. A
worker has its own handlers.
"""

from __future__ import annotations

import gc

from ablate.runs.executors.lean import load_lightning
from ablate.runs.executors.signals import hold

hold()
load_lightning()
import ablate.runs.execute  # noqa: E402, F401

gc.freeze()  # what is imported is not looked through, and so copied, by every worker
