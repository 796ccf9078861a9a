"""Transports token by token: which ranks a token's copies are sent to, and in how many hops."""

from __future__ import annotations

from collections.abc import Sequence

from ablate.components.alltoall.spec import Deduplicated, Flat, TwoHop
from ablate.spec.ranks import Ranks

Send = tuple[int, int]  # from a rank to another one


def two_hops(node: TwoHop, ranks: Ranks, source: int, chosen: Sequence[int]) -> list[Send]:
    """chosen: the rank of every choice. To the same place in each node with a choice, and from there inside it."""
    width = ranks.per_node
    sends = []
    for n in sorted({rank // width for rank in chosen}):
        relay = n * width + source % width
        sends.append((source, relay))
        sends += [(relay, rank) for rank in sorted(set(chosen)) if rank // width == n]
    return [(a, b) for a, b in sends if a != b]


def flat(node: Flat, ranks: Ranks, source: int, chosen: Sequence[int]) -> list[Send]:
    return [(source, rank) for rank in chosen if rank != source]


def deduplicated(node: Deduplicated, ranks: Ranks, source: int, chosen: Sequence[int]) -> list[Send]:
    return [(source, rank) for rank in sorted(set(chosen)) if rank != source]


REFERENCES = {"two-hop": two_hops, "flat": flat, "deduplicated": deduplicated}
