"""Starts the ranks of a computation on this machine, and brings back what the first of them says."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

T = TypeVar("T")


def on_ranks(n: int, function: Callable[..., T], *arguments: Any) -> T:
    """function(*arguments) in n processes that are ranks of one gloo world; what rank 0 returned.

    A rank's exception ends the others and is raised here.
    """
    with tempfile.TemporaryDirectory() as folder:
        queue = processes.get_context("spawn").SimpleQueue()
        processes.spawn(_rank, (n, folder, queue, function, arguments), nprocs=n)
        result: T = queue.get()
    return result


def _rank(rank: int, n: int, folder: str, queue: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    dist.init_process_group("gloo", init_method=f"file://{Path(folder) / 'meeting'}", rank=rank, world_size=n)
    try:
        result = function(*arguments)
        dist.barrier()
        if rank == 0:
            queue.put(result)
    finally:
        dist.destroy_process_group()
