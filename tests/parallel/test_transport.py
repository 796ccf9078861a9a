"""Transports: the closed form against every choice there is, what is sent against the sends one by one, equality."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from ablate.components.alltoall.module import from_bytes
from ablate.components.alltoall.reference import REFERENCES
from ablate.components.alltoall.spec import Deduplicated, Flat, TwoHop
from ablate.components.fp8.quantise import Strips, quantise
from ablate.components.fp8.wire import Fp8Wire
from ablate.components.moe.spec import RoutedExperts
from ablate.components.variants import Variant, on_ranks
from ablate.errors import RunFailed
from ablate.model.block import recompute_blocks
from ablate.model.loss import training_loss
from ablate.parallel.experts import hold
from ablate.parallel.launch import launch
from ablate.parallel.layout import check_ranks
from ablate.parallel.mesh import make_mesh, members
from ablate.parallel.transport.equality import Case, Equality, check, run_of
from ablate.presets import preset
from ablate.presets.account import account_preset
from ablate.spec.ranks import Ranks, read_ranks
from ablate.sweep.equality import few

NODES = (TwoHop(), Flat(), Deduplicated())
FULL = {"mla": "on", "moe": "on", "aux-free": "on", "mtp": "on", "fp8": "on"}
LEVELS = {"two-hop": "on", "flat": "flat", "deduplicated": "deduplicated"}


def experts(n: int, groups: int, limit: int, chosen: int) -> RoutedExperts:
    return RoutedExperts(
        n_routed_experts=n,
        n_shared_experts=1,
        n_activated_experts=chosen,
        expert_hidden_dim=8,
        n_expert_groups=groups,
        n_limited_groups=limit,
        route_scale=1.0,
    )


@pytest.mark.parametrize("node", NODES, ids=lambda n: n.kind)
@pytest.mark.parametrize(
    ("moe", "ranks"),
    [
        (experts(8, 4, 2, 2), Ranks(data=4, expert=4, node=2)),
        (experts(12, 4, 2, 3), Ranks(data=4, expert=4, node=2)),
        (experts(6, 2, 1, 2), Ranks(data=4, expert=4, node=2)),  # shares of 1, 2, 1, 2
        (experts(9, 3, 2, 3), Ranks(data=6, expert=6, node=3)),  # groups that do not end where nodes do
        (experts(8, 1, 1, 3), Ranks(data=4, expert=4, node=8)),  # one node
    ],
)
def test_the_closed_form_is_the_mean_over_every_choice(node: Any, moe: RoutedExperts, ranks: Ranks) -> None:
    shares = ranks.share(moe.n_routed_experts)
    holder = [rank for rank, share in enumerate(shares) for _ in share]
    size, n_choices, most = moe.experts_per_group, 0, Counter[str]()
    total: Counter[str] = Counter()
    for groups in itertools.combinations(range(moe.n_expert_groups), moe.n_limited_groups):
        reachable = [e for g in groups for e in range(g * size, (g + 1) * size)]
        for chosen in itertools.combinations(reachable, moe.n_activated_experts):
            for source in range(ranks.expert):
                n_choices += 1
                sends = REFERENCES[node.kind](node, ranks, source, [holder[e] for e in chosen])
                apart = sum(a // ranks.per_node != b // ranks.per_node for a, b in sends)
                total.update(between=apart, inside=len(sends) - apart)
                most["between"] = max(most["between"], apart)
                most["all"] = max(most["all"], len(sends))
    found = node.traffic(moe, ranks)
    assert found.between_nodes == pytest.approx(float(Fraction(total["between"], n_choices)), rel=1e-12)
    assert found.inside_nodes == pytest.approx(float(Fraction(total["inside"], n_choices)), rel=1e-12)
    assert found.most_between_nodes >= most["between"]
    assert found.most >= most["all"]
    if moe.n_routed_experts == 8 and ranks.n_nodes > 1 and node.kind == "two-hop":
        assert most["between"] <= moe.n_limited_groups


def test_account_shows_deepseeks_layout() -> None:
    found = account_preset("v3-671b", [], [], {}, None, read_ranks("expert=64"))["transports"]
    assert found["two-hop"]["most_copies_between_nodes"] == 4
    assert found["flat"]["copies_between_nodes"] == 7
    assert found["two-hop"]["copies_between_nodes"] < found["deduplicated"]["copies_between_nodes"] < 7


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("data=2,expert=3", "must divide data"),
        ("expert", "takes sizes of pipeline, data, expert, node"),
        ("data=2,experts=2", "experts.*expert"),
        ("expert=6,node=4", "must divide expert"),
        ("data=0", "at least 1"),
    ],
)
def test_ranks_that_cannot_be_are_refused_in_one_sentence(given: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_ranks(given)


def test_every_rank_is_in_one_group_of_a_name() -> None:
    ranks = Ranks(pipeline=2, data=8, expert=4, node=2)
    for name, groups in members(ranks).items():
        assert sorted(itertools.chain(*groups)) == list(range(16)), name
    assert members(ranks)["replicas"][0] == [0, 4]
    assert members(ranks)["between"][0] == [0, 2]


@pytest.mark.parametrize("dim", [32, 128, 300])
@pytest.mark.parametrize("power_of_two", [True, False])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_the_wire_gives_what_the_product_would_have_made(dim: int, power_of_two: bool, n: int) -> None:
    x, wire = torch.randn(n, dim, generator=torch.Generator().manual_seed(0)) * 30, Fp8Wire(power_of_two)
    sent = wire.encode(x)
    assert sent.shape == (n, wire.row_bytes(dim))
    found = wire.decode(sent, dim, torch.float32)
    expected = quantise(x, Strips(-1), power_of_two_scales=power_of_two).dequantise() if n else x
    assert torch.equal(found, expected)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_part_of_any_number_of_rows_is_read_as_numbers(n: int) -> None:
    sent = torch.arange(n * 5, dtype=torch.float32).view(n, 5)
    part = sent.view(torch.uint8)[:, 4:20]  # of one row, torch calls any strides contiguous
    assert torch.equal(from_bytes(part, 2, torch.float64), torch.from_numpy(sent[:, 1:].numpy().copy().view("float64")))


def cases(ranks: Ranks, changes: Sequence[dict[str, str]]) -> list[Case]:
    found = [Case(levels=FULL | c | {"alltoall": LEVELS[n.kind]}, ranks=ranks) for n in NODES for c in changes]
    return [*found, *(replace(c, n_routed_experts=6, idle=1, starved=1) for c in found)]


def observed(case: Case) -> dict[str, tuple[list[int], list[int]]]:
    """Rows and bytes that left by channel, as counted and as the sends one by one say."""
    rank = torch.distributed.get_rank()
    torch.set_default_dtype(torch.float64)
    run, mesh = run_of(case), make_mesh(case.ranks)
    ours = hold(run.model, run.trainer.transport, mesh, seed=run.seed)
    model = ours.model
    assert ours.peers is not None
    recompute_blocks(model, case.recompute)
    chosen: list[Tensor] = []
    for module in model.modules():
        if hasattr(module, "divide"):
            module.router.register_forward_hook(lambda *call: chosen.append(call[2][0]))
    window = torch.randint(run.model.vocab_size, (1 if rank else 2, 33), generator=torch.Generator().manual_seed(rank))
    loss = training_loss(model, run.text, {"window_BT1": window}, decaying=False).total
    n_routed = len(chosen)
    loss.backward()
    assert len(chosen) == n_routed * (2 if case.recompute == "full" else 1)
    del chosen[n_routed:]  # computed again, and not sent
    transport = run.trainer.transport
    assert transport is not None
    holder = [r for r, share in enumerate(ours.peers.shares) for _ in share]
    rows: Counter[str] = Counter()
    for expert_NA in chosen:
        for choices in expert_NA.tolist():
            sends = REFERENCES[transport.kind](transport, case.ranks, rank, [holder[e] for e in choices])
            for a, b in sends:
                apart = a // case.ranks.per_node != b // case.ranks.per_node
                hop = "between nodes" if apart else "inside nodes"
                rows[hop if transport.kind == "two-hop" else "everyone"] += 1
    n_choices = 1 if transport.kind == "flat" else expert_NA.shape[1]
    out, back = run.model.linear.wire_bytes(run.model.dim, "float32"), run.model.dim * 8
    if run.model.linear.wire() is None:
        out = back
    each = (out + n_choices * (8 + 4) + back) + (out + back + n_choices * 8)  # weights are float64 here
    names = [channel.name for channel in ours.peers.channels]
    counted = torch.tensor([[c.n_rows, c.n_bytes] for c in ours.peers.channels])
    expected = torch.tensor([[4 * rows[name], each * rows[name]] for name in names])
    for figures in (counted, expected):  # who relays a copy is not who sent it: sums over ranks
        torch.distributed.all_reduce(figures)
    torch.set_default_dtype(torch.float32)
    assert ours.peers.n_waits == len(chosen), "the host waits once a layer and micro-batch, and not backward"
    return {n: (a, b) for n, a, b in zip(names, counted.tolist(), expected.tolist(), strict=True)}


def both(equalities: list[Case], counts: list[Case]) -> tuple[list[Equality], list[Any]]:
    """Everything that needs ranks, in one start of them."""
    return check(equalities), [observed(case) for case in counts]


def assert_all(found: tuple[list[Equality], list[Any]], equalities: list[Case], counts: list[Case]) -> None:
    for case, equality in zip(equalities, found[0], strict=True):
        assert equality.holds, (case, equality)
        assert equality.gradient_error < 1e-6
        assert sum(equality.copies.values()) > 0, "something must have been sent for this to mean anything"
    for case, channels in zip(counts, found[1], strict=True):
        for name, (counted, expected) in channels.items():
            assert counted == expected, (case, name)
        assert any(counted[0] for counted, _ in channels.values())


def test_on_two_ranks_nothing_changes_and_every_byte_is_foreseen() -> None:
    ranks = Ranks(data=2, expert=2, node=1)
    equalities, counts = cases(ranks, [{}, {"fp8": "bf16"}])[::2], cases(ranks, [{}])[:3]
    again = [replace(case, recompute="full") for case in counts]
    equalities, counts = equalities + again[:1], counts + again
    assert_all(launch(both, 2, equalities, counts)[0], equalities, counts)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [Ranks(data=4, expert=4, node=2), Ranks(data=4, expert=2, node=1)], ids=str)
def test_on_four_ranks_nothing_changes_and_every_byte_is_foreseen(ranks: Ranks) -> None:
    changes = [{}, {"fp8": "bf16"}, {"mtp": "next-token"}, {"fp8": "bf16", "aux-free": "sequence-aux"}]
    equalities, counts = cases(ranks, changes), cases(ranks, [{}, {"fp8": "bf16"}])[:6] if ranks.expert == 4 else []
    assert_all(launch(both, 4, equalities, counts)[0], equalities, counts)


def failing() -> None:
    if torch.distributed.get_rank():
        raise ValueError("no such thing")
    torch.distributed.barrier()


def test_a_rank_that_fails_ends_the_others_and_is_named() -> None:
    with pytest.raises(RunFailed, match="rank 1 of 2 failed: ValueError: no such thing"):
        launch(failing, 2)


@pytest.mark.parametrize(
    ("ranks", "levels", "message"),
    [
        (Ranks(data=16, expert=16), {}, "8 routed experts do not give each of 16"),
        (Ranks(data=2, expert=2), {"fp8": "tensorwise"}, "one scale of all experts"),
        (Ranks(data=2, expert=2), {"aux-free": "batch-aux"}, "no such order"),
        (Ranks(data=3), {}, "cannot be shared evenly by 3 .* a multiple of 3 sequences"),
        (Ranks(data=2, expert=2), {"fp8": "gradient-blocks"}, ""),
        (Ranks(data=2, expert=2), {"moe": "dense", "aux-free": "sequence-aux", "alltoall": "flat"}, ""),
    ],
)
def test_what_ranks_cannot_compute_as_one_process_does_is_refused(
    ranks: Ranks, levels: dict[str, str], message: str
) -> None:
    small = on_ranks(preset("nano"), ranks)
    small = replace(small, trainer=replace(small.trainer, batch_size=16, micro_batch_size=1))
    spec = (Variant.full(small) | {"distill": "raw"} | levels).resolve(small)
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        check_ranks(spec.model, spec.trainer)


@pytest.mark.parametrize(
    ("ranks", "checked"),
    [
        (Ranks(pipeline=2, data=2, expert=2), Ranks(pipeline=2, data=2, expert=2)),
        (Ranks(pipeline=16, data=64, expert=64), Ranks(pipeline=2, data=4, expert=4, node=2)),
        (Ranks(data=16, expert=16, node=16), Ranks(data=2, expert=2, node=2)),
        (Ranks(pipeline=16), Ranks(pipeline=2, node=1)),
        (Ranks(data=64), Ranks(data=2, node=1)),
    ],
)
def test_a_large_layout_is_checked_on_few_ranks_with_the_same_axes(ranks: Ranks, checked: Ranks) -> None:
    assert few(ranks) == checked
