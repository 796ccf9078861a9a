"""A training step asks the device nothing: every operator of it is looked at, without a device."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ablate.bench import step
from ablate.bench.catalogue import MODULES
from ablate.bench.traffic import BY_MASK, Traffic, counted
from ablate.components.moe.module import _counts
from ablate.components.registry import REGISTRY
from ablate.components.variants import Variant
from ablate.kernels import launch
from ablate.model.step_weights import begin_step, end_step, of_step
from ablate.presets import preset
from ablate.spec.run import Spec
from ablate.training.callbacks import Clock

NANO = preset("nano")
FULL = Variant.full(NANO)
ALTERNATIVES = [
    (component.name, alternative.name)
    for component in REGISTRY.components
    if component.name in FULL.on and component.name not in ("fp8", "distill")
    for alternative in component.alternatives
]


def of(variant: Variant, backend: str) -> Spec:
    """Two sequences a micro-batch in bfloat16, as on a GPU."""
    spec = step.on(step.on(variant.resolve(NANO), "library"), backend)
    return replace(
        spec, trainer=replace(spec.trainer, dtype="bfloat16", micro_batch_size=2, batch_size=4, sequence_length=32)
    )


@pytest.mark.parametrize(("component", "alternative"), [("", ""), *ALTERNATIVES])
def test_no_operator_of_a_step_waits_for_the_device(component: str, alternative: str) -> None:
    """Every component on, and each in each of its alternatives; FP8 is a matter of kernels on a GPU."""
    off = [name for name in ("fp8", "distill", component) if name in FULL.on]
    chosen = {component: alternative} if component else {}
    traffic = counted(of(FULL.without(off, chosen), "library"), n_micro_batches=2, fake=False)
    assert traffic.operators["mm"] > 10
    assert not traffic.waits


@pytest.mark.parametrize("without", [["distill"], ["distill", "fp8"]], ids=["full", "bf16"])
def test_no_kernel_s_surroundings_wait_for_it(without: list[str]) -> None:
    """Without numbers, which whoever reads one would miss; with multi-token prediction, in FP8 and in bfloat16."""
    traffic = counted(of(FULL.without(without), "triton"), n_micro_batches=2)
    assert traffic.operators["mla_attention_backward"] > 1
    assert not traffic.waits


@pytest.mark.parametrize("name", MODULES)
def test_no_operator_reads_what_it_launches_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators' own code, on tensors without numbers; nothing is compiled."""
    launches = []
    monkeypatch.setattr(launch, "compiler", lambda *arguments: launches.append(arguments))
    for _ in importlib.import_module(name).example_launches():
        pass
    assert launches


def test_what_waits_is_seen() -> None:
    with Traffic() as traffic:
        torch.bincount(torch.tensor([1, 2]))
        float(torch.ones(1).sum())
        torch.arange(4)[torch.tensor([True, False, True, False])]
    assert {"bincount", "_local_scalar_dense", BY_MASK} <= traffic.waits


def test_bytes_are_those_of_operands_and_results() -> None:
    x, wide = torch.ones(4, 8), torch.ones(8).expand(4, 8)
    with Traffic() as traffic:
        y = x + x  # one operand, one result
        y.add_(wide)  # in place; eight numbers, read four times
        y.view(2, 16).T.detach()
        x[torch.tensor([0, 0])]  # two rows, read and written
        torch.empty(100)
    assert traffic.bytes["add"] == 2 * 32 * 4
    assert traffic.bytes["add_"] == (32 + 8) * 4
    assert traffic.bytes["index"] == 2 * 16 * 4
    assert traffic.operators.keys() == {"add", "add_", "index"}


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
    with Traffic() as before:
        expected = micro_batches(model, 4)
    with opened(), Traffic() as after:
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


# Seconds of steps.


class Event:
    """Stands for an event of a GPU, whose work goes on at two seconds a step behind the host."""

    made: ClassVar[list[Event]] = []
    n_waits: ClassVar[int] = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Event.made.append(self)
        self.at_s = 2.0 * (len(Event.made) // 2) + 0.5 * (len(Event.made) % 2)

    def synchronize(self) -> None:
        Event.n_waits += 1

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.at_s - self.at_s)


def test_the_seconds_of_steps_are_read_when_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock, module = Clock(tokens_per_step=1), SimpleNamespace(n_micro_batches=2)
    for batch in range(2 * 7):
        clock.on_train_batch_start(None, module, None, batch)
        clock.on_train_batch_end(None, module, None, None, batch)
    assert (len(Event.made), Event.n_waits) == (14, 0)
    assert clock.step_s == [1.5] * 7
    assert clock.training_s == 7 * 1.5
    assert (len(Event.made), Event.n_waits) == (14, 7)
