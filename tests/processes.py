"""The processes of a study as /proc shows them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def _alive() -> Iterator[tuple[int, int, int]]:
    """Process, parent and session of each process that is no zombie."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, _, session = path.read_text().rpartition(") ")[2].split()[:4]
        except OSError:
            continue
        if state != "Z":
            yield int(path.parent.name), int(parent), int(session)


def workers(command: int) -> list[int]:
    """The processes of a command's runs: children of the server that forks them, which is its own child."""
    alive = list(_alive())
    children = {process for process, parent, _ in alive if parent == command}
    return [process for process, parent, _ in alive if parent in children]


def children(parent: int) -> list[int]:
    """The processes that a process has started."""
    return [process for process, of, _ in _alive() if of == parent]


def alive() -> set[int]:
    """All processes that are no zombies."""
    return {process for process, _, _ in _alive()}


def session(leader: int) -> list[int]:
    """The processes of a session that are alive."""
    return [process for process, _, of in _alive() if of == leader]
