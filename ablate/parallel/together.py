"""Ranks as processes of this machine: started together, and ended together when one is lost."""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from ablate.errors import RunFailed

POLL_S = 0.2
HEAVY = "ablate.parallel.transport.equality"  # what the server that forks the ranks imports once


def launch(function: Callable[..., Any], n_ranks: int, *arguments: Any, preload: str = HEAVY) -> list[Any]:
    """`function(rank, *arguments)` in a process for each rank, which are one gloo world; what they return, by rank.

    RunFailed says which rank failed first and why; the others are then ended.
    """
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
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
            end(processes)


def _results(pipes: Sequence[Connection]) -> list[Any]:
    found: dict[int, Any] = {}
    while len(found) < len(pipes):
        open_pipes = [pipe for rank, pipe in enumerate(pipes) if rank not in found]
        for pipe in wait(open_pipes, timeout=POLL_S):
            rank = pipes.index(pipe)
            try:
                failed, value = pipes[rank].recv()
            except (EOFError, OSError):
                raise RunFailed(f"rank {rank} of {len(pipes)} was lost: its process was killed") from None
            if failed:
                raise RunFailed(f"rank {rank} of {len(pipes)} failed: {value}")
            found[rank] = value
    return [found[rank] for rank in range(len(pipes))]


def end(processes: Iterable[Any]) -> None:
    """End processes that have not ended by themselves."""
    for process in processes:
        process.join(timeout=POLL_S)
        if process.is_alive():
            process.kill()
        process.join()


def _rank(
    function: Callable[..., Any],
    rank: int,
    n_ranks: int,
    store: str,
    connection: Connection,
    arguments: tuple[Any, ...],
) -> None:
    try:
        with World(rank, n_ranks, Path(store)):
            result = (False, function(rank, *arguments))
    except Exception as error:
        lines = str(error).strip().splitlines()
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
        result = (True, f"{said} ({Path(place.filename).name}:{place.lineno})")
    connection.send(result)


class World:
    """The process group of all ranks, met at a file that they all see."""

    def __init__(self, rank: int, n_ranks: int, store: Path) -> None:
        self.rank, self.n_ranks, self.store = rank, n_ranks, store

    def __enter__(self) -> None:
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{self.store}", rank=self.rank, world_size=self.n_ranks)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()
