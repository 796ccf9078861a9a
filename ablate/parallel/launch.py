"""Ranks as processes of this machine: started together, and ended together when one is lost."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from ablate.errors import RunFailed
from ablate.parallel.lost import is_loss

POLL_S = 0.2
GRACE_S = 2.0  # after the first failure: whoever caused it may tell of it later than whoever lost the connection by it


@dataclass(frozen=True, kw_only=True, slots=True)
class _Failure:
    said: str
    by_another: bool  # a broken connection, as the ranks have it whose peer failed


def launch(function: Callable[..., Any], n_ranks: int, *arguments: Any) -> list[Any]:
    """`function(*arguments)` in a process for each rank, which are one gloo world; what they return, by rank.

    RunFailed says which rank failed and why, in one line; the others are then ended.
    """
    context: Any = multiprocessing.get_context("forkserver")
    # What the ranks need is imported once, by the server that forks them.
    context.set_forkserver_preload(["torch.distributed", function.__module__])
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        pipes, processes = [], []
        for rank in range(n_ranks):
            mine, theirs = context.Pipe(duplex=False)
            target = (function, rank, n_ranks, f"{folder}/rendezvous", theirs, arguments)
            process = context.Process(target=_rank, args=target, daemon=True)
            process.start()
            theirs.close()
            pipes.append(mine)
            processes.append(process)
        try:
            return _results(pipes)
        finally:
            _end(processes)


def _results(pipes: Sequence[Connection]) -> list[Any]:
    found: dict[int, Any] = {}
    deadline: float | None = None
    while len(found) < len(pipes) and (deadline is None or time.monotonic() < deadline):
        for pipe in wait([pipe for rank, pipe in enumerate(pipes) if rank not in found], timeout=POLL_S):
            rank = next(i for i, each in enumerate(pipes) if each is pipe)
            try:
                found[rank] = pipes[rank].recv()
            except (EOFError, OSError):
                found[rank] = _Failure(said="its process was killed", by_another=False)
        failures = {rank: value for rank, value in found.items() if isinstance(value, _Failure)}
        if any(not failure.by_another for failure in failures.values()):
            break
        if failures and deadline is None:
            deadline = time.monotonic() + GRACE_S
    failures = {rank: value for rank, value in found.items() if isinstance(value, _Failure)}
    for rank, failure in sorted(failures.items(), key=lambda item: (item[1].by_another, item[0])):
        raise RunFailed(f"rank {rank} of {len(pipes)} failed: {failure.said}")
    return [found[rank] for rank in range(len(pipes))]


def _end(processes: Iterable[Any]) -> None:
    """End processes that have not ended by themselves."""
    for process in processes:
        process.join(timeout=POLL_S)
        if process.is_alive():
            process.kill()
        process.join()


def _rank(
    function: Callable[..., Any], rank: int, n_ranks: int, store: str, told: Connection, arguments: tuple[Any, ...]
) -> None:  # fmt: skip
    import torch
    import torch.distributed as dist

    from ablate.parallel.groups import WATCHDOG

    torch.set_num_threads(1)
    try:
        where = f"file://{Path(store)}"
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=n_ranks, timeout=WATCHDOG)
        try:
            result = function(*arguments)
            dist.barrier()
        finally:
            dist.destroy_process_group()
    except Exception as error:
        lines = str(error).strip().splitlines()
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
        result = _Failure(said=f"{said} ({Path(place.filename).name}:{place.lineno})", by_another=is_loss(error))
    told.send(result)
