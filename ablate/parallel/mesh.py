"""The groups of ranks along each axis, made by every rank in one order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

from ablate.parallel.groups import new_group
from ablate.parallel.spans import Spans
from ablate.spec.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Mesh:
    """This rank's place, and the groups that it is in.

    Ranks are numbered pipeline-major: rank = pipeline rank x data + data rank, and expert rank = data rank modulo
    expert. Groups by name: "data" (equal pipeline rank), "replicas" (data ranks that hold the same experts),
    "everyone" (an expert group), "between" (its ranks of equal place in all nodes), "inside" (a node of it).
    spans: the recorder of what this rank does and waits for.
    """

    ranks: Ranks
    rank: int
    groups: dict[str, Any]
    spans: Spans = field(default_factory=Spans)

    @property
    def pipeline_rank(self) -> int:
        return self.rank // self.ranks.data

    @property
    def data_rank(self) -> int:
        return self.rank % self.ranks.data

    @property
    def pipeline_ranks(self) -> tuple[int, ...]:
        """The ranks of this one's pipeline, in the order of their places."""
        return tuple(range(self.data_rank, self.ranks.world, self.ranks.data))

    @property
    def expert_rank(self) -> int:
        return self.data_rank % self.ranks.expert


def members(ranks: Ranks) -> dict[str, list[list[int]]]:
    """The ranks of every group, by name; each rank is in one group of a name."""
    found: dict[str, list[list[int]]] = {name: [] for name in ("data", "replicas", "everyone", "between", "inside")}
    for first in range(0, ranks.world, ranks.data):
        data = list(range(first, first + ranks.data))
        found["data"].append(data)
        found["replicas"] += [data[place :: ranks.expert] for place in range(ranks.expert)]
        for start in range(0, ranks.data, ranks.expert):
            experts = data[start : start + ranks.expert]
            found["everyone"].append(experts)
            found["between"] += [experts[place :: ranks.per_node] for place in range(ranks.per_node)]
            found["inside"] += [experts[n : n + ranks.per_node] for n in range(0, ranks.expert, ranks.per_node)]
    return found


def make_mesh(ranks: Ranks) -> Mesh:
    """The mesh of this process's world, which must be initialised; ValueError if it has another size."""
    if dist.get_world_size() != ranks.world:
        raise ValueError(
            f"trainer.ranks is {ranks}, which is {ranks.world} processes, and {dist.get_world_size()} were started"
        )
    rank, groups = dist.get_rank(), {}
    # Every rank makes every group: a group that only its members make can hang where ranks are in different numbers.
    for name, sets in members(ranks).items():
        for each in sets:
            group = new_group(each)
            if rank in each:
                groups[name] = group
    return Mesh(ranks, rank, groups)
