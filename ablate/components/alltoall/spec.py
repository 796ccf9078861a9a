"""Nodes of the transport slot: how tokens get to experts on other ranks and what these make of them back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from ablate.components.alltoall.copies import nodes_of, reached, reached_at_most, single
from ablate.components.moe.spec import RoutedExperts
from ablate.spec.nodes import TransportNode
from ablate.spec.ranges import checked
from ablate.spec.ranks import Ranks
from ablate.spec.run import Spec
from ablate.spec.traffic import Traffic


@checked("transport")
@dataclass(frozen=True, kw_only=True, slots=True)
class TwoHop:
    """A token is sent once to each node that it has experts on, to the rank of equal place there, and spread inside.

    The hop between nodes is InfiniBand's, the one inside NVLink's (arXiv:2412.19437, section 3.2.2).
    """

    kind: Literal["two-hop"] = "two-hop"

    def build(self, peers: Any, n_experts: int, wire: Any) -> Any:
        from ablate.components.alltoall.module import TwoHopTransport

        return TwoHopTransport(peers, n_experts, wire)

    def traffic(self, feed_forward: RoutedExperts, ranks: Ranks) -> Traffic:
        """Hop 1 leaves the token's node, hop 2 the rank of its place."""
        shares = ranks.share(feed_forward.n_routed_experts)
        nodes = nodes_of(shares, ranks.per_node)
        at_node, at_rank = reached(feed_forward, nodes), reached(feed_forward, map(single, shares))
        most_nodes = min(reached_at_most(feed_forward, nodes), ranks.n_nodes - 1)
        most_ranks = reached_at_most(feed_forward, map(single, shares))
        return Traffic(
            between_nodes=at_node * (ranks.n_nodes - 1) / ranks.n_nodes,
            inside_nodes=at_rank * (ranks.per_node - 1) / ranks.per_node,
            most_between_nodes=most_nodes,
            most=most_nodes + most_ranks,
            choices=feed_forward.n_activated_experts,
        )


@checked("transport")
@dataclass(frozen=True, kw_only=True, slots=True)
class Flat:
    """Every (token, chosen expert) pair is a row of its own, sent straight to the expert's rank."""

    kind: Literal["flat"] = "flat"

    def build(self, peers: Any, n_experts: int, wire: Any) -> Any:
        from ablate.components.alltoall.module import FlatTransport

        return FlatTransport(peers, n_experts, wire)

    def traffic(self, feed_forward: RoutedExperts, ranks: Ranks) -> Traffic:
        n = feed_forward.n_activated_experts
        return _straight(float(n), n, ranks, choices=1)


@checked("transport")
@dataclass(frozen=True, kw_only=True, slots=True)
class Deduplicated:
    """One copy of a token for each rank that it has experts on, sent straight there."""

    kind: Literal["deduplicated"] = "deduplicated"

    def build(self, peers: Any, n_experts: int, wire: Any) -> Any:
        from ablate.components.alltoall.module import DeduplicatedTransport

        return DeduplicatedTransport(peers, n_experts, wire)

    def traffic(self, feed_forward: RoutedExperts, ranks: Ranks) -> Traffic:
        shares = ranks.share(feed_forward.n_routed_experts)
        copies, most = (f(feed_forward, map(single, shares)) for f in (reached, reached_at_most))
        return _straight(float(copies), int(most), ranks, choices=feed_forward.n_activated_experts)


def _straight(copies: float, most: int, ranks: Ranks, *, choices: int) -> Traffic:
    """Of copies that go from a rank to another without a stop, one of R alike being the sender's own."""
    elsewhere, beside = ranks.expert - ranks.per_node, ranks.per_node - 1
    return Traffic(
        between_nodes=copies * elsewhere / ranks.expert,
        inside_nodes=copies * beside / ranks.expert,
        most_between_nodes=most if elsewhere else 0,
        most=most,
        choices=choices,
    )


ALTERNATIVES: dict[str, type[Flat] | type[Deduplicated]] = {"flat": Flat, "deduplicated": Deduplicated}


def on(spec: Spec) -> Spec:
    if fault := _meaningless(spec):
        raise ValueError(f"alltoall brings tokens to experts on other ranks, and {fault}; leave alltoall off too")
    return _fill(spec, TwoHop())


def off(spec: Spec, alternative: str) -> Spec:
    if fault := _meaningless(spec):
        if alternative != "flat":
            raise ValueError(
                f"alltoall={alternative} chooses how tokens get to experts on other ranks, and {fault}; "
                "leave the alternative of alltoall out"
            )
        return _fill(spec, None)
    return _fill(spec, ALTERNATIVES[alternative]())


def _meaningless(spec: Spec) -> str:
    """Why nothing is sent in a variant, or ""."""
    if not isinstance(spec.model.feed_forward, RoutedExperts):
        return "with moe off there are none"
    if spec.trainer.ranks.expert < 2:
        return "all experts are on one: give --ranks with expert=2 or more"
    return ""


def _fill(spec: Spec, transport: TransportNode | None) -> Spec:
    return replace(spec, trainer=replace(spec.trainer, transport=transport))
