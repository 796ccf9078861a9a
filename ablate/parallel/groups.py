"""Process groups of arbitrary sets of ranks, and the ranks that a micro-batch goes through."""

from __future__ import annotations

from collections.abc import Iterable

import torch.distributed as dist

from ablate.parallel.mesh import Mesh

Group = tuple[int, ...]  # ranks of the world


def pipeline_ranks(mesh: Mesh) -> Group:
    """The ranks of this one's pipeline, in the order of their places."""
    return tuple(range(mesh.data_rank, mesh.ranks.world, mesh.ranks.data))


def made(wanted: Iterable[Group]) -> dict[Group, dist.ProcessGroup]:
    """A process group for each set of ranks, of those that this rank is in.

    Every rank calls it with the same sets: each makes every group, in one order. Made by their members alone, groups
    of overlapping members hang.
    """
    every = {group: dist.new_group(list(group)) for group in sorted(set(wanted))}
    rank = dist.get_rank()
    return {group: handle for group, handle in every.items() if rank in group}
