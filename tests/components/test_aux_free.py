"""Balancing: what the bias does to the load, once per optimizer step, and what each auxiliary loss averages over."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from variants import FULL, NANO, on_torch, spec_of, tokens

from ablate.components.aux_free.callback import BiasUpdate
from ablate.components.aux_free.module import balance_loss, global_balance_loss, update_bias
from ablate.components.aux_free.spec import AuxiliaryLoss, BiasBalance
from ablate.components.moe.module import Router, Routing
from ablate.components.moe.spec import RoutedExperts
from ablate.model.block import ModelContext
from ablate.model.transformer import build
from ablate.training.loads import ExpertLoads

DIM, E, A = 8, 6, 2
NODE = RoutedExperts(
    n_routed_experts=E,
    n_shared_experts=0,
    n_activated_experts=A,
    expert_hidden_dim=8,
    n_expert_groups=1,
    n_limited_groups=1,
    route_scale=1.0,
)


def router_of(seed: int = 0, spread: float = 1.0) -> Router:
    router = Router(NODE, DIM, selection_bias=True)
    with torch.no_grad():
        router.weight.copy_(torch.randn(E, DIM, generator=torch.Generator().manual_seed(seed)) * spread)
    return router


def inputs(batch: int, length: int, seed: int = 1, shift: float = 0.0) -> Tensor:
    return torch.randn(batch, length, DIM, generator=torch.Generator().manual_seed(seed)) + shift


def by_the_paper(chosen: list[list[int]], affinity_TE: Tensor) -> Tensor:
    """Equations 17-20 for one set of T tokens: sum_i f_i P_i."""
    t, total = len(chosen), torch.zeros(())
    for i in range(E):
        f = E / (A * t) * sum(i in experts for experts in chosen)  # eq. 18
        p = sum(affinity_TE[s, i] / affinity_TE[s].sum() for s in range(t)) / t  # eqs. 19, 20
        total = total + f * p  # eq. 17
    return total


def routed(router: Router, x_BTD: Tensor) -> tuple[list[list[int]], Tensor, Routing]:
    chosen_NA, _, routing = router(x_BTD)
    return chosen_NA.tolist(), torch.sigmoid(x_BTD.flatten(0, 1) @ router.weight.T), routing


# ---- the losses


@pytest.mark.parametrize("n_sequences", [1, 2, 4])
def test_the_loss_is_the_papers_over_sets_of_sequences(n_sequences: int) -> None:
    router, t = router_of(), 7
    chosen, affinity_NE, routing = routed(router, inputs(4, t))
    step = n_sequences * t
    sets = [by_the_paper(chosen[i : i + step], affinity_NE[i : i + step]) for i in range(0, 4 * t, step)]
    expected = torch.stack(sets).mean()
    got = balance_loss([routing], sequences_per_set=n_sequences)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(balance_loss([routing, routing], sequences_per_set=n_sequences), 2 * expected)
    (a,), (b,) = (torch.autograd.grad(loss, [router.weight], retain_graph=True) for loss in (got, expected))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_three_scopes_differ() -> None:
    chosen, affinity_NE, routing = routed(router_of(), inputs(4, 7))
    values = [float(balance_loss([routing], sequences_per_set=n).detach()) for n in (1, 2, 4)]
    assert len({round(v, 6) for v in values}) == 3
    torch.testing.assert_close(torch.tensor(values[2]), by_the_paper(chosen, affinity_NE.detach()))
    torch.testing.assert_close(float(global_balance_loss([routing], {}).detach()), values[2])


def test_the_global_loss_counts_the_step_and_weighs_by_the_micro_batch() -> None:
    """f_i over all tokens of the step so far, P_i of the tokens at hand (arXiv:2501.11873)."""
    router, t = router_of(), 9
    first, second = inputs(2, t, seed=1), inputs(2, t, seed=2, shift=0.5)
    counts_E = routed(router, first)[2].counts_BE.sum(0)
    chosen, affinity_NE, routing = routed(router, second)
    all_chosen = routed(router, first)[0] + chosen
    expected = torch.zeros(())
    for i in range(E):
        f = E / (A * len(all_chosen)) * sum(i in experts for experts in all_chosen)
        expected = expected + f * (affinity_NE[:, i] / affinity_NE.sum(-1)).mean()
    torch.testing.assert_close(global_balance_loss([routing], {router: counts_E}), expected)
    assert not torch.allclose(global_balance_loss([routing], {}), expected, rtol=1e-4)


def test_an_even_load_costs_one_a_layer() -> None:
    """Each expert chosen equally often: f is 1 for all, and normalised affinities sum to 1."""
    router = router_of()
    counts_BE, affinity_BE = torch.full((4, E), 5), torch.rand(4, E)
    even = Routing(router, counts_BE, affinity_BE / affinity_BE.sum(-1, keepdim=True), A)
    for n in (1, 2, 4):
        torch.testing.assert_close(balance_loss([even], sequences_per_set=n), torch.tensor(1.0))
    torch.testing.assert_close(balance_loss([even, even], sequences_per_set=1), torch.tensor(2.0))
    torch.testing.assert_close(global_balance_loss([even], {router: torch.full((E,), 7)}), torch.tensor(1.0))


def test_nodes_apply_their_weight_and_scope() -> None:
    router = router_of()
    routing = [routed(router, inputs(4, 7))[2]]
    counts = {router: torch.arange(E)}
    sequence, micro, batch = (
        AuxiliaryLoss(scope="sequence", balance_loss_weight=0.5),
        AuxiliaryLoss(scope="micro-batch", balance_loss_weight=0.5, n_sequences=2),
        AuxiliaryLoss(scope="batch", balance_loss_weight=0.5),
    )
    assert sequence.loss(routing, counts) == 0.5 * balance_loss(routing, sequences_per_set=1)
    assert micro.loss(routing, counts) == 0.5 * balance_loss(routing, sequences_per_set=2)
    assert batch.loss(routing, counts) == 0.5 * global_balance_loss(routing, counts)
    on = BiasBalance(bias_update_speed=1.0, sequence_loss_weight=1e-4, backend="library")
    assert on.loss(routing, counts) == 1e-4 * balance_loss(routing, sequences_per_set=1)
    assert on.selection_bias
    assert not sequence.selection_bias


def test_the_micro_batch_must_fit_the_trainers() -> None:
    settings = replace(NANO.settings["aux-free"], micro_batch_sequences=3)
    sizes = replace(NANO, settings={**NANO.settings, "aux-free": settings})
    with pytest.raises(ValueError, match=r"over 3 sequences; that must divide .* micro_batch_size, which is 4"):
        (FULL | {"aux-free": "micro-batch-aux"}).resolve(sizes)


# ---- the bias


def test_the_update_is_gamma_times_the_sign_of_the_load_error() -> None:
    bias_E = torch.zeros(E)
    update_bias(bias_E, torch.tensor([5, 4, 3, 4, 8, 0]), 0.25)  # the mean is 4
    assert bias_E.tolist() == [-0.25, 0.0, 0.25, 0.0, -0.25, 0.25]
    update_bias(bias_E, torch.tensor([9, 0, 0, 0, 0, 0]), 0.25)  # and it adds up
    assert bias_E.tolist() == [-0.5, 0.25, 0.5, 0.25, 0.0, 0.5]


def test_the_sign_is_exact_where_floating_point_is_not() -> None:
    """Loads of 2^40 tokens that differ from the mean by one: float32 cannot tell them apart."""
    bias_E = torch.zeros(3)
    update_bias(bias_E, torch.tensor([2**40 + 1, 2**40, 2**40 - 1]), 1.0)
    assert bias_E.tolist() == [-1.0, 0.0, 1.0]
    with pytest.raises(AssertionError):
        update_bias(bias_E, torch.ones(3), 1.0)


def test_counts_of_all_ranks_are_added_before_the_sign_is_taken() -> None:
    router = router_of()
    other_rank = torch.tensor([0, 9, 0, 0, 0, 0])
    strategy = SimpleNamespace(reduce=lambda counts, reduce_op: counts + other_rank if reduce_op == "sum" else None)
    module = SimpleNamespace(loads=SimpleNamespace(counts={router: torch.tensor([4, 0, 0, 0, 0, 0])}))
    BiasUpdate(1.0, "library").on_before_optimizer_step(SimpleNamespace(strategy=strategy), module, None)
    assert router.bias_E is not None
    assert router.bias_E.tolist() == [-1.0, -1.0, 1.0, 1.0, 1.0, 1.0]  # 4 alone would not exceed the mean by rank


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # lightning's own, with torch 2.13
@pytest.mark.parametrize("accumulate", [1, 4])
def test_once_per_optimizer_step_whatever_the_accumulation(accumulate: int) -> None:
    """The bias after some steps is the same for one micro-batch a step and for four, and moves once a step."""
    updates: list[int] = []

    class Counting(BiasUpdate):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            updates.append(sum(int(c.sum()) for c in pl_module.loads.counts.values()))
            super().on_before_optimizer_step(trainer, pl_module, optimizer)

    x_BTD = inputs(4 * 3, 8, shift=0.4)  # three steps of four sequences
    module = Toy(router_of(), accumulate)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Counting(0.5, "library")],
    )
    loader = torch.utils.data.DataLoader(list(x_BTD), batch_size=4 // accumulate)
    trainer.fit(module, loader)
    assert updates == [4 * 8 * A] * 3
    expected = router_of()
    assert expected.bias_E is not None
    for step in x_BTD.split(4):
        update_bias(expected.bias_E, expected(step)[2].counts_BE.sum(0), 0.5)
    assert torch.equal(module.router.bias_E, expected.bias_E)


class Toy(LightningModule):
    """A router whose weight does not move, counted as the training module's are."""

    def __init__(self, router: Router, n_micro_batches: int) -> None:
        super().__init__()
        self.router, self.n_micro_batches, self.loads = router, n_micro_batches, ExpertLoads()
        self.routing: list[Any] = []

    def configure_callbacks(self) -> list[Any]:
        return [self.loads]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        _, weight_NA, routing = self.router(batch)
        self.routing = [routing]
        return weight_NA.sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_the_bias_evens_out_a_skewed_router() -> None:
    """Inputs with a common direction favour the same experts; the bias alone brings them to an even load."""
    router = router_of(seed=3)
    assert router.bias_E is not None

    def violation(seed: int) -> float:
        counts_E = router(inputs(16, 64, seed=seed, shift=1.0))[2].counts_BE.sum(0)
        return float(counts_E.max() * E / counts_E.sum() - 1)

    before = violation(0)
    for step in range(600):
        update_bias(router.bias_E, router(inputs(8, 64, seed=10 + step, shift=1.0))[2].counts_BE.sum(0), 0.003)
    assert before > 1.0
    assert violation(0) < 0.15
    assert float(router.bias_E.max() - router.bias_E.min()) > 0.1


def test_training_takes_no_notice_of_the_bias_in_the_gradient() -> None:
    model = build(spec_of(FULL).model, seed=0)
    biases = [b for name, b in model.named_buffers() if name.endswith("bias_E")]
    assert len(biases) == 2  # of the routed layer, and of the module ahead
    assert {n for n, _ in model.named_parameters() if "bias" in n} == set()
    routing = model.predict(tokens(2, 8)).routing
    assert [r.router.bias_E is b for r, b in zip(routing, biases, strict=True)] == [True, True]


def test_the_callback_comes_with_the_node_alone() -> None:
    for level, expected in (("on", [BiasUpdate]), ("sequence-aux", []), ("batch-aux", []), ("none", [])):
        balance = on_torch(spec_of(FULL | {"aux-free": level}).model).balance
        assert balance is not None
        assert [type(callback) for callback in balance.callbacks()] == expected
    assert ModelContext(NANO.model).dim == NANO.model.dim
