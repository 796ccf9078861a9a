"""The ranks that a layer's experts are divided over: channels between nodes, inside a node and to everyone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch import Tensor

from ablate.parallel.spans import Spans
from ablate.parallel.transport.channel import Channel
from ablate.spec.ranks import Ranks


@dataclass(slots=True)
class ExpertPeers:
    """One expert group of this rank: `n_nodes` nodes of `per_node` ranks, numbered node by node."""

    ranks: Ranks
    rank: int  # in the expert group
    everyone: Channel
    between: Channel
    inside: Channel
    shares: Sequence[range]  # each rank's experts
    spans: Spans = field(default_factory=Spans)
    n_waits: int = field(default=0)  # of the host, for sizes

    @property
    def n_nodes(self) -> int:
        return self.ranks.n_nodes

    @property
    def per_node(self) -> int:
        return self.ranks.per_node

    @property
    def channels(self) -> tuple[Channel, ...]:
        return self.everyone, self.between, self.inside

    def gather(self, counts: Tensor) -> tuple[Tensor, list[list[int]]]:
        """Every rank's counts (R, n) where the rows are, and as numbers, for which the host waits."""
        table = counts.new_empty(len(self.shares), len(counts))
        with self.spans.inside("D"):
            if len(table) == 1:
                table[0] = counts
            else:
                dist.all_gather(list(table), counts, group=self.everyone.group)
            numbers: list[list[int]] = table.tolist()
        self.n_waits += 1
        return table, numbers


def alone(n_experts: int) -> ExpertPeers:
    """One rank that holds every expert: rows are packed, encoded and summed as between ranks, and go nowhere."""
    everyone, between, inside = (Channel(name, None) for name in ("everyone", "between nodes", "inside nodes"))
    return ExpertPeers(Ranks(), 0, everyone, between, inside, shares=[range(n_experts)])


def peers_of(ranks: Ranks, data_rank: int, n_experts: int, groups: dict[str, Any], spans: Spans) -> ExpertPeers:
    """This rank's peers; groups: process groups of its expert group by the names of `expert_groups`.

    `spans`: the rank's recorder, which is told what is waited for.
    """
    rank = data_rank % ranks.expert
    node, place = divmod(rank, ranks.per_node)
    return ExpertPeers(
        ranks,
        rank,
        Channel("everyone", groups["everyone"], rank, ranks.expert, spans),
        Channel("between nodes", groups["between"], node, ranks.n_nodes, spans),
        Channel("inside nodes", groups["inside"], place, ranks.per_node, spans),
        shares=ranks.share(n_experts),
        spans=spans,
    )
