"""Signals that ask a study or a run to stop: a flag, and nothing is done inside the handler."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@dataclass(slots=True)
class Stop:
    """What has been asked for so far. `at_once`: by Ctrl-C after another signal, so without waiting for anything."""

    requested: bool = False
    at_once: bool = False


def hold() -> None:
    """Keep the signals from this process, and from those that it forks until they can heed them (`stopping`).

    Not ignored, or one that comes while a process starts would be lost.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


@contextmanager
def stopping() -> Iterator[Stop]:
    """Turns the signals into flags while it lasts, held ones at once; under `nohup` SIGHUP stays ignored."""
    stop = Stop()

    def note(number: int, frame: object) -> None:
        stop.at_once |= stop.requested and number == signal.SIGINT
        stop.requested = True

    taken = [n for n in SIGNALS if not (n == signal.SIGHUP and signal.getsignal(n) is signal.SIG_IGN)]
    before = {number: signal.signal(number, note) for number in taken}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, taken)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
