"""The all-to-all's bytes against counting, and the order of the transports."""

from __future__ import annotations

from itertools import combinations

import pytest

from ablate.cluster.hardware import cluster
from ablate.cluster.inputs import assumptions, draw
from ablate.cluster.network import Network, copies, dispatch_bytes, expected_distinct
from ablate.cluster.work import Routed

V3 = Routed(tokens=4096, dim=7168, n_experts=256, copies=8, n_groups=8, n_limited_groups=4)


@pytest.mark.parametrize(("places", "experts", "chosen"), [(2, 8, 3), (4, 8, 2), (4, 12, 5), (1, 6, 3)])
def test_expected_distinct_places_by_counting(places: int, experts: int, chosen: int) -> None:
    each = experts // places
    choices = list(combinations(range(experts), chosen))
    counted = sum(len({e // each for e in choice}) for choice in choices) / len(choices)
    assert expected_distinct(places, experts, chosen) == pytest.approx(counted)


def test_copies_of_v3_by_hand() -> None:
    """64 ranks on 8 nodes; a token's 8 experts are in 4 of 8 groups, each of which is a node."""
    nodes = expected_distinct(4, 128, 8)
    assert 3.5 < nodes < 4
    two_hop = copies(V3, "two-hop", 64, 8)
    flat = copies(V3, "flat", 64, 8)
    once = copies(V3, "deduplicated", 64, 8)
    assert two_hop.network == pytest.approx(nodes * 7 / 8)
    assert flat.network == pytest.approx(8 * 7 / 8)
    assert two_hop.network < once.network < flat.network
    assert flat.network + flat.nvlink == pytest.approx(8 * 63 / 64)  # all but what stays on the rank


def test_one_node_uses_no_network_and_one_rank_nothing() -> None:
    assert copies(V3, "two-hop", 8, 1).network == 0
    assert copies(V3, "flat", 8, 1).network == 0
    alone = copies(V3, "flat", 1, 1)
    assert (alone.network, alone.nvlink) == (0, 0)


def test_seconds_by_hand() -> None:
    """DeepEP's own figure: 51 GB/s where a token's own node counts, so 4 x 30 MB in 2.3 ms; in ours 3.5 leave."""
    machine = cluster("h800-2048")
    draws = draw(assumptions(), n_samples=0)
    found = Network(cluster=machine, draws=draws).all_to_all(V3, "two-hop", 64, dispatch_bytes(True))[0]
    sent = expected_distinct(4, 128, 8) * 7 / 8 * 4096 * 7168 * (1 + 4 / 128)
    assert found == pytest.approx(sent * 1.05 / (50e9 * 0.89) + 60e-6)
    assert found == pytest.approx(4 * 4096 * 7168 * (1 + 4 / 128) / 51e9, rel=0.10)
