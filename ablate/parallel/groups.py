"""Process groups of arbitrary sets of ranks, and how long any rank waits for another."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

Group = tuple[int, ...]  # ranks of the world
WATCHDOG = timedelta(minutes=5)  # without a word from another rank: then the run ends


def new_group(ranks: Iterable[int]) -> Any:
    """A process group; every rank of the world calls it, for every group, in one order.

    Made by their members alone, groups of overlapping members hang. The time limit is given to each: torch's own is
    half an hour, whatever that of the world is.
    """
    return dist.new_group(list(ranks), timeout=WATCHDOG)


def made(wanted: Iterable[Group]) -> dict[Group, Any]:
    """A process group for each set of ranks, of those that this rank is in. Every rank calls it with the same sets."""
    every = {group: new_group(group) for group in sorted(set(wanted))}
    rank = dist.get_rank()
    return {group: handle for group, handle in every.items() if rank in group}


def release(groups: Iterable[Any]) -> None:
    """Let go of groups that nobody uses any more; each has sockets and threads. Every rank calls it, for the same."""
    dist.barrier()
    for group in groups:
        dist.destroy_process_group(group)
