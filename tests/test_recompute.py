"""A block that is computed again: twice the products of its forward pass, less that is kept, and the same numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from ablate.components.fp8.callback import observe
from ablate.components.fp8.observation import Observation
from ablate.components.variants import Variant
from ablate.kernels.weight_gradients import put_off, split_forward, work_off
from ablate.model.block import recompute_blocks
from ablate.model.loss import TrainingLoss, training_loss
from ablate.model.recompute import once, recomputed
from ablate.model.step_weights import begin_step, end_step
from ablate.model.transformer import Transformer, initialise
from ablate.model.turns import Steps, at_once
from ablate.presets import preset
from ablate.spec.run import Spec

LENGTH = 16
VARIANTS = {
    "full": {},
    "bf16, sequence-aux": {"fp8": "bf16", "aux-free": "sequence-aux"},
    "parallel heads": {"mtp": "parallel-heads"},
    "dense": {"moe": "dense", "aux-free": "sequence-aux", "mtp": "next-token"},
}


def spec_of(levels: dict[str, str]) -> Spec:
    base = preset("nano")
    spec = (Variant.full(base) | {"distill": "raw"} | levels).resolve(base)
    return replace(spec, model=spec.model.portable().with_backends({"linear": "reference"}))


PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)


class Products(TorchDispatchMode):
    """Counts matrix products; those of attention are counted by their operator."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.n += func.overloadpacket in PRODUCTS
        return func(*args, **(kwargs or {}))


class Trained:
    """A micro-batch through a model, forward and backward, and what it took."""

    def __init__(
        self, spec: Spec, recompute: str, *, autocast: bool = False, split: bool = False, observed: bool = False
    ) -> None:
        self.model = Transformer(spec.model)
        initialise(self.model, spec.model.init, 0)
        recompute_blocks(self.model, recompute)
        self.observation = Observation()
        if observed:
            observe(self.model, self.observation)
        generator = torch.Generator().manual_seed(1)
        window = torch.randint(spec.model.vocab_size, (2, LENGTH + 1), generator=generator)
        self.kept: dict[int, int] = {}
        before = torch.get_rng_state()
        begin_step()
        hooks = saved_tensors_hooks(self._keep, lambda x: x)
        with Products() as forward, torch.autocast("cpu", torch.bfloat16, enabled=autocast), hooks:
            self.loss = self._forward(spec, window, split)
        with Products() as backward:
            self._backward(split)
        end_step()
        assert torch.equal(before, torch.get_rng_state()), "nothing random is drawn"
        self.n_forward, self.n_backward = forward.n, backward.n
        self.gradients = {name: p.grad for name, p in self.model.named_parameters()}

    def _keep(self, x: Tensor) -> Tensor:
        self.kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    def _forward(self, spec: Spec, window: Tensor, split: bool) -> TrainingLoss:
        def loss() -> TrainingLoss:
            return training_loss(self.model, spec.data.text, {"window_BT1": window}, decaying=False)

        if not split:
            return loss()
        with split_forward():
            return loss()

    def _backward(self, split: bool) -> None:
        if not split:
            self.loss.total.backward()
            return
        with put_off() as waiting:
            self.loss.total.backward()
        self.n_put_off = len(waiting)
        work_off(waiting)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_numbers_are_the_same_in_every_bit(name: str, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    try:
        spec = spec_of(VARIANTS[name])
        for split in (False, True):
            kept, again = (Trained(spec, recompute, split=split) for recompute in ("none", "full"))
            same(kept, again)
            if split:
                assert kept.n_put_off == again.n_put_off > 0
    finally:
        torch.set_default_dtype(torch.float32)


def test_numbers_are_the_same_under_autocast() -> None:
    spec = spec_of({})
    same(*(Trained(spec, recompute, autocast=True) for recompute in ("none", "full")))


def test_what_fp8_loses_is_counted_once() -> None:
    kept, again = (Trained(spec_of({}), recompute, observed=True) for recompute in ("none", "full"))
    assert kept.observation.metrics()["fp8_gradient_amax"] > 0
    assert again.observation.metrics() == kept.observation.metrics()


def same(kept: Trained, again: Trained) -> None:
    assert torch.equal(kept.loss.total, again.loss.total)
    assert len(kept.loss.routing) == len(again.loss.routing)
    for ours, theirs in zip(again.loss.routing, kept.loss.routing, strict=True):
        assert torch.equal(ours.counts_BE, theirs.counts_BE)
    assert kept.gradients.keys() == again.gradients.keys()
    for name, gradient in kept.gradients.items():
        assert gradient is not None
        found = again.gradients[name]
        assert found is not None, name
        assert torch.equal(found, gradient), name


def test_every_product_of_a_block_is_computed_again_and_little_is_kept() -> None:
    spec = spec_of({"fp8": "bf16", "mtp": "next-token"})
    kept, again = (Trained(spec, recompute) for recompute in ("none", "full"))
    n_head = 1
    assert again.n_forward == kept.n_forward
    assert again.n_backward - kept.n_backward == kept.n_forward - n_head, "the head's product alone is made once"
    inputs = spec.model.n_layers * 2 * LENGTH * spec.model.dim * 4
    assert sum(again.kept.values()) < sum(kept.kept.values()) - 2 * inputs


def test_what_happens_once_is_not_done_again() -> None:
    done: list[str] = []

    def do(what: str) -> Tensor:
        done.append(what)
        return torch.ones(3)

    def function(x: Tensor) -> Steps[tuple[Tensor, Any]]:
        kept = once(lambda: do("kept"))
        gone = once(lambda: do("gone"), stand_in=lambda: torch.zeros(3))
        yield
        done.append("pass")
        return x * kept + gone, None

    x = torch.full((3,), 2.0, requires_grad=True)
    y, _ = at_once(recomputed(function, x))
    y.sum().backward()
    assert done == ["kept", "gone", "pass", "pass"]
    assert y.tolist() == [3.0] * 3
    assert x.grad is not None
    assert x.grad.tolist() == [1.0] * 3
