"""A training step asks the device nothing: every operator of it is looked at, on a processor that stands for a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ablate.bench import step
from ablate.components.moe.module import _counts
from ablate.components.variants import Variant
from ablate.model.step_weights import begin_step, end_step, of_step
from ablate.presets import preset
from ablate.spec.machine import Machine

CPU = torch.device("cpu")
# What makes the host wait: values that it reads, and results whose size only the device knows.
WAITS = {
    "_local_scalar_dense", "item", "equal", "is_nonzero", "bincount", "nonzero", "masked_select", "unique_consecutive",
    "_unique2", "unique_dim", "repeat_interleave", "histc", "_assert_async", "argwhere", "allclose",
}  # fmt: skip
BF16 = "bfloat16"


class Trace(TorchDispatchMode):
    """Counts operators, and the conversions of what is at least so many numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.by_mask = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators[func.__name__.partition(".")[0]] += 1
        if func.__name__.startswith(("index.", "index_put")) and any(
            t is not None and t.dtype == torch.bool for t in args[1]
        ):
            self.by_mask += 1  # as many results as are true
        return func(*args, **(kwargs or {}))


def traced(name: str) -> Trace:
    """A step of nano by libraries under autocast, as on a GPU but for FP8, which there is a matter of kernels."""
    nano = preset("nano")
    full = Variant.full(nano)
    variant = {"full": full.without(["fp8", "distill"]), "none": Variant.none(), "coarse": coarse(full)}[name]
    spec = step.on(variant.resolve(nano), "library")
    spec = replace(spec, trainer=replace(spec.trainer, dtype=BF16)).for_machine(Machine(kind="cpu"))
    run = step.ours(spec, step.windows(spec.model.vocab_size, 2, 32, CPU), CPU)
    run()
    with Trace() as trace:
        run()
    return trace


def coarse(full: Variant) -> Variant:
    return full.without(["moe", "fp8", "distill"], {"moe": "coarse"})


@pytest.mark.parametrize("name", ["full", "none", "coarse"])
def test_no_operator_of_a_step_waits_for_the_device(name: str) -> None:
    trace = traced(name)
    assert trace.operators["mm"] > 10
    assert not WAITS & trace.operators.keys()
    assert trace.by_mask == 0


def test_what_waits_is_seen() -> None:
    with Trace() as trace:
        torch.bincount(torch.tensor([1, 2]))
        float(torch.ones(1).sum())
        torch.arange(4)[torch.tensor([True, False, True, False])]
    assert {"bincount", "_local_scalar_dense"} <= trace.operators.keys()
    assert trace.by_mask == 1


def test_counts_are_those_of_bincount() -> None:
    chosen = torch.randint(8, (3, 50), generator=torch.Generator().manual_seed(0))
    chosen[0] = 7
    counts = _counts(chosen, 9)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, torch.stack([torch.bincount(row, minlength=9) for row in chosen]))


# Conversions of weights.


@contextmanager
def opened() -> Iterator[None]:
    begin_step()
    try:
        yield
    finally:
        end_step()


def micro_batches(model: nn.ModuleList, n: int) -> list[Tensor]:
    """Gradients after n micro-batches under autocast; the first matrix is used twice in each."""
    for i in range(n):
        x = torch.randn(4, 16, generator=torch.Generator().manual_seed(i))
        with torch.autocast("cpu", torch.bfloat16):
            hidden = F.linear(x, of_step(model[0].weight)) + F.linear(x.flip(0), of_step(model[0].weight))
            loss = F.linear(hidden.relu(), of_step(model[1].weight)).float().square().mean()
        loss.backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    for parameter in model.parameters():
        parameter.grad = None
    return found


def test_a_step_s_copies_give_the_gradients_of_copies_of_each_micro_batch() -> None:
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(16, 16, bias=False), nn.Linear(16, 8, bias=False)])
    with Trace() as before:
        expected = micro_batches(model, 4)
    with opened(), Trace() as after:
        found = micro_batches(model, 4)
    assert [g.dtype for g in found] == [torch.float32] * 2
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    # Two matrices there and back, in each of four micro-batches: 16 conversions; then 2, and 2 of first gradients.
    assert before.operators["_to_copy"] - after.operators["_to_copy"] == 12
    assert of_step(model[0].weight) is model[0].weight  # closed


def test_the_next_step_reads_the_weights_that_the_optimizer_left() -> None:
    model = nn.ModuleList([nn.Linear(16, 16, bias=False), nn.Linear(16, 8, bias=False)])
    with opened():
        first = micro_batches(model, 1)
    with torch.no_grad():
        model[1].weight.mul_(2)
    with opened():
        second = micro_batches(model, 1)
    assert not torch.equal(first[0], second[0])
    with opened(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert of_step(model[0].weight) is model[0].weight  # nobody asks for a gradient
