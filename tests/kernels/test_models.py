"""Whole models on kernels against the same models on libraries: loss and every gradient, weights and all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from numerics import DEVICE, TOLERANCE, error
from variants import FULL, NANO, loss_of, spec_of, tokens

from ablate.components.variants import Variant
from ablate.model.transformer import Transformer, initialise
from ablate.spec.machine import this_machine
from ablate.spec.model import ModelSpec

KERNELS = dict.fromkeys(("attention", "feed_forward", "balance", "linear", "norm", "head"), "triton")

LIBRARIES = dict.fromkeys((*KERNELS, "first_feed_forward"), "library")


def trained(model: ModelSpec, backends: dict[str, str]) -> tuple[Any, dict[str, torch.Tensor]]:
    """The training loss of one window and the gradients of all parameters, in float32."""
    built = Transformer(model.with_backends(backends).for_machine(this_machine(), "float32"))
    initialise(built, model.init, seed=0)
    built.to(DEVICE)
    for name, buffer in built.named_buffers():
        if name.endswith("bias_E"):
            buffer.copy_(torch.linspace(-0.1, 0.1, buffer.numel()))
    loss = loss_of(built, tokens(2, 18).to(DEVICE))
    loss.backward()
    return loss, {name: p.grad for name, p in built.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "changes",
    [{}, {"moe": "no-shared"}, {"mla": "gqa", "moe": "dense", "aux-free": "sequence-aux", "alltoall": "flat"}],
)
def test_ordinary_arithmetic(changes: dict[str, str]) -> None:
    model = spec_of(FULL | {"fp8": "bf16"} | changes).model
    expected, gradients = trained(model, LIBRARIES)
    found, others = trained(model, KERNELS)
    assert set(gradients) == set(others)
    assert error(found, expected) < TOLERANCE[torch.float32]
    for name, gradient in gradients.items():
        # A gradient is some dozens of float32 operations away from the loss.
        assert error(others[name], gradient) < 10 * TOLERANCE[torch.float32], name


def test_eight_bits() -> None:
    """Sums of kernel and emulation may differ in their last bit, and a rounding to E4M3 then flips."""
    model = spec_of(FULL).model
    expected, gradients = trained(model, LIBRARIES | {"linear": "emulated"})
    found, others = trained(model, KERNELS)
    assert error(found, expected) < TOLERANCE[torch.bfloat16]
    for name, gradient in gradients.items():
        assert error(others[name], gradient) < TOLERANCE[torch.float8_e4m3fn], name


def test_a_backend_changes_what_runs_and_no_parameter() -> None:
    for variant in (FULL, Variant.none()):
        model = spec_of(variant).model
        with torch.device("meta"):
            one, other = (
                Transformer(model.with_backends(b).for_machine(replace(this_machine(), interpreted=True), "float32"))
                for b in ({}, KERNELS)
            )
        shapes = [{name: t.shape for name, t in m.state_dict().items()} for m in (one, other)]
        assert shapes[0] == shapes[1]
        assert one.spec != other.spec
    assert NANO.model.norm.backend == "auto"
