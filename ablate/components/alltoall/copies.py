"""How many parts, nodes or ranks, hold experts that a token chose: the expectation under uniform routing, and the most.

Uniform: every set of `n_limited_groups` groups is equally likely, and inside it every set of activated experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import comb

from ablate.components.moe.spec import RoutedExperts

Part = Sequence[range]  # the experts that a part holds, by rank


def single(share: range) -> Part:
    """A rank as a part."""
    return (share,)


def nodes_of(shares: Sequence[range], per_node: int) -> list[Part]:
    """The nodes as parts."""
    return [shares[first : first + per_node] for first in range(0, len(shares), per_node)]


def reached(node: RoutedExperts, parts: Iterable[Part]) -> float:
    """Expected number of parts that a token has experts on."""
    return float(sum(1 - _untouched(node, held_by_group(node, part)) for part in parts))


def reached_at_most(node: RoutedExperts, parts: Iterable[Part]) -> int:
    """The most parts that a token can have experts on.

    No more than the groups of the limit touch, and no more than experts are chosen. Where every group lies inside one
    node, nodes are at most the M of node-limited routing.
    """
    touched = [0] * node.n_expert_groups
    n_parts = 0
    for part in parts:
        held = held_by_group(node, part)
        n_parts += any(held)
        touched = [n + bool(k) for n, k in zip(touched, held, strict=True)]
    limited = sum(sorted(touched, reverse=True)[: node.n_limited_groups])
    return min(limited, node.n_activated_experts, n_parts)


def held_by_group(node: RoutedExperts, part: Part) -> list[int]:
    """Of each group of experts, how many a part holds."""
    size = node.experts_per_group
    groups = [range(g * size, (g + 1) * size) for g in range(node.n_expert_groups)]
    return [sum(max(0, min(s.stop, g.stop) - max(s.start, g.start)) for s in part) for g in groups]


def _untouched(node: RoutedExperts, held: Sequence[int]) -> Fraction:
    """Probability that a token has no expert on a part that holds so many of each group.

    ways[k][s]: sets of k groups of which the part holds s experts; the token then chooses among the others alone.
    """
    limit, chosen = node.n_limited_groups, node.n_activated_experts
    ways: list[dict[int, int]] = [{0: 1}, *({} for _ in range(limit))]
    for n in held:
        for k in range(limit, 0, -1):
            for s, count in ways[k - 1].items():
                ways[k][s + n] = ways[k].get(s + n, 0) + count
    reachable = limit * node.experts_per_group
    favourable = sum(count * comb(reachable - s, chosen) for s, count in ways[limit].items())
    return Fraction(favourable, comb(node.n_expert_groups, limit) * comb(reachable, chosen))
