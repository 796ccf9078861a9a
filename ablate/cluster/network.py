"""Bytes and seconds between ranks: the experts' all-to-all by topology, the pipeline's transfers, gradients."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Literal

import numpy as np

from ablate.cluster.hardware import Cluster
from ablate.cluster.inputs import Draws, Floats
from ablate.cluster.work import Routed
from ablate.spec.cost import BF16_BYTES, FP32_BYTES

Transport = Literal["two-hop", "deduplicated", "flat"]
SCALE_TILE = 128  # numbers of a dispatched token that share a scale


@dataclass(frozen=True, kw_only=True, slots=True)
class Copies:
    """How often a token leaves its rank: to other nodes, and to other ranks by NVLink, on average."""

    network: float
    nvlink: float


def expected_distinct(n_places: float, n_experts: int, copies: int) -> float:
    """How many of equal places hold at least one of `copies` experts drawn among `n_experts` without repetition."""
    elsewhere = round(n_experts - n_experts / n_places)
    return n_places * (1.0 - comb(elsewhere, copies) / comb(n_experts, copies))


def copies(routed: Routed, transport: Transport, expert: int, n_nodes: int) -> Copies:
    """Of a token routed evenly inside its groups, whose ranks are as likely to be the sender's as any other's.

    A group's experts lie on neighbouring ranks. `two-hop`: once to each node that has a chosen expert, and from there
    to the ranks. `deduplicated`: once to each rank. `flat`: once for each expert.
    """
    if expert == 1:
        return Copies(network=0.0, nvlink=0.0)
    reachable = routed.n_experts * routed.n_limited_groups // routed.n_groups
    nodes_reached = max(1.0, n_nodes * routed.n_limited_groups / routed.n_groups)
    ranks_reached = max(1.0, expert * routed.n_limited_groups / routed.n_groups)
    nodes = expected_distinct(nodes_reached, reachable, routed.copies)
    ranks = expected_distinct(ranks_reached, reachable, routed.copies)
    remote = 1.0 - 1.0 / n_nodes
    if transport == "flat":
        return Copies(network=routed.copies * remote, nvlink=routed.copies * (1.0 / n_nodes - 1.0 / expert))
    if transport == "deduplicated":
        return Copies(network=ranks * remote, nvlink=ranks * (1.0 / n_nodes - 1.0 / expert))
    return Copies(network=nodes * remote, nvlink=ranks * (1.0 - n_nodes / expert))


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """Transfers on a cluster under all draws."""

    cluster: Cluster
    draws: Draws

    def all_to_all(self, routed: Routed, transport: Transport, expert: int, bytes_per_number: float) -> Floats:
        """Seconds of one dispatch or combine, nothing beside it; both kinds of links work at the same time."""
        zero = np.zeros_like(self.draws["network_efficiency"])
        if expert == 1:
            return zero
        sent = copies(routed, transport, expert, self.cluster.n_nodes(expert))
        token = routed.dim * bytes_per_number * routed.tokens * self.draws["routing_imbalance"]
        network = sent.network * token / (self.cluster.network_bytes_per_s * self.draws["network_efficiency"])
        nvlink = sent.nvlink * token / (self.cluster.nvlink_bytes_per_s * self.draws["nvlink_efficiency"])
        return np.asarray(np.maximum(network, nvlink) + self.draws["all_to_all_latency"])

    def transfer(self, n_bytes: float, crosses_nodes: bool) -> Floats:
        """Seconds of an activation's way to the next pipeline rank."""
        return self._bytes(n_bytes, crosses_nodes) + self.draws["transfer_latency"]

    def tensor_collectives(self, work_tokens: int, dim: int, tensor: int, count: int) -> Floats:
        """Seconds of all-gathers and reduce-scatters of activations among tensor ranks, without what is hidden."""
        moved = count * work_tokens * dim * BF16_BYTES * (tensor - 1) / tensor
        seen = 1.0 - self.draws["tensor_overlap"]
        return np.asarray(self._bytes(moved, crosses_nodes=tensor > self.cluster.gpus_per_node) * seen)

    def sharded_update(self, parameters: float, n_ranks: int, crosses_nodes: bool) -> Floats:
        """Seconds of ZeRO-1's traffic: gradients scattered in float32, weights gathered in BF16."""
        if n_ranks == 1:
            return np.zeros_like(self.draws["network_efficiency"])
        return self._bytes(parameters * (FP32_BYTES + BF16_BYTES) * (n_ranks - 1) / n_ranks, crosses_nodes)

    def _bytes(self, n_bytes: float, crosses_nodes: bool) -> Floats:
        if crosses_nodes:
            rate = self.cluster.network_bytes_per_s * self.draws["network_efficiency"]
        else:
            rate = self.cluster.nvlink_bytes_per_s * self.draws["nvlink_efficiency"]
        return np.asarray(n_bytes / rate)


def dispatch_bytes(low_precision: bool) -> float:
    """Of one number of a dispatched token: FP8 with a float32 scale a tile, or BF16."""
    return 1.0 + FP32_BYTES / SCALE_TILE if low_precision else float(BF16_BYTES)
