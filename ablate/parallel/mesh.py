"""Where a process stands among the ranks of a run: pipeline x data, the expert ranks inside the data ranks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch.distributed as dist

from ablate.spec.ranks import Ranks

Group = tuple[int, ...]  # ranks of the world


@dataclass(frozen=True, slots=True)
class Mesh:
    """Rank of the world = pipeline place * data ranks + data place; expert place = data place modulo expert ranks.

    So the ranks that share experts are neighbours, which one machine holds where it can.
    """

    ranks: Ranks
    rank: int

    @property
    def pipeline(self) -> int:
        """Place in the pipeline."""
        return self.rank // self.ranks.data

    @property
    def data(self) -> int:
        """Place among the data ranks."""
        return self.rank % self.ranks.data

    @property
    def expert(self) -> int:
        """Place among the expert ranks."""
        return self.data % self.ranks.expert

    @property
    def pipeline_group(self) -> Group:
        """The ranks that a micro-batch goes through, in the order of their places."""
        return tuple(range(self.data, self.ranks.world, self.ranks.data))

    @property
    def data_group(self) -> Group:
        """The ranks that hold the same stages."""
        first = self.pipeline * self.ranks.data
        return tuple(range(first, first + self.ranks.data))

    @property
    def expert_group(self) -> Group:
        """The ranks that share the experts of these stages."""
        first = self.rank - self.expert
        return tuple(range(first, first + self.ranks.expert))

    @property
    def everywhere(self) -> tuple[Mesh, ...]:
        """The same of every rank."""
        return tuple(Mesh(self.ranks, rank) for rank in range(self.ranks.world))


def groups(wanted: Iterable[Group]) -> dict[Group, dist.ProcessGroup]:
    """A process group for each set of ranks, of those that this rank is in.

    Every rank calls it with the same sets: each makes every group, in one order. Made by their members alone, groups
    of overlapping members hang.
    """
    made = {group: dist.new_group(list(group)) for group in sorted(set(wanted))}
    rank = dist.get_rank()
    return {group: handle for group, handle in made.items() if rank in group}
