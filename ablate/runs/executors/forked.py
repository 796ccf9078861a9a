"""Imported by the server that forks workers, once: what a run needs, and no signal that is meant for the runs.

A signal to all processes of a command stops its workers with a checkpoint; the server ends when the command does. A
worker has its own handlers.
"""

from __future__ import annotations

import gc
import signal

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)

import ablate.runs.execute  # noqa: E402, F401

gc.freeze()  # what is imported is not looked through, and so copied, by every worker
