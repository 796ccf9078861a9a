"""The move of the selection bias (arXiv:2408.15664; arXiv:2412.19437, section 2.1.2) in one launch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ablate.kernels.launch import launch, machine_of, next_power_of_2, operator
from ablate.kernels.operands import check_rows, check_shape
from ablate.kernels.table import Table

TABLE = Table(Path(__file__).with_name("kernel.json"))
KERNELS: dict[str, tuple[str, ...]] = {"bias_update_forward_kernel": ()}


@triton.jit
def bias_update_forward_kernel(bias_ptr, counts_ptr, to_ptr, speed, E: tl.constexpr, BLOCK_E: tl.constexpr):
    expert_E = tl.arange(0, BLOCK_E)
    count_E = tl.load(counts_ptr + expert_E, expert_E < E, other=0)
    # E times the mean load against E times the load, exact in integers.
    lack_E = tl.sum(count_E, 0) - count_E * E
    sign_E = (lack_E > 0).to(tl.float32) - (lack_E < 0).to(tl.float32)
    bias_E = tl.load(bias_ptr + expert_E, expert_E < E, other=0.0)
    tl.store(to_ptr + expert_E, bias_E + speed * sign_E, expert_E < E)


@operator("bias_update")
def bias_update_op(bias_E: Tensor, counts_E: Tensor, speed: float) -> Tensor:
    check_rows("the selection bias", bias_E, (torch.float32,), 1)
    check_rows("the experts' loads", counts_E, (torch.int64,), 1)
    check_shape("the experts' loads", counts_E, bias_E.shape)
    to_E, block = bias_E.new_empty(bias_E.shape), next_power_of_2(bias_E.shape[0])
    chosen = TABLE.choose("bias_update_forward", machine_of(bias_E.device), E=block)
    launch(
        bias_update_forward_kernel, (1,), bias_E, counts_E, to_E, speed,
        E=bias_E.shape[0], BLOCK_E=block, **chosen.options,
    )  # fmt: skip
    return to_E


@bias_update_op.register_fake
def _(bias_E: Tensor, counts_E: Tensor, speed: float) -> Tensor:
    return bias_E.new_empty(bias_E.shape)


def bias_update(bias_E: Tensor, counts_E: Tensor, speed: float) -> Tensor:
    """bias + speed sign(mean load - load): up where an expert got less than the mean, down where it got more.

    bias: (E,) float32; counts: (E,) int64, the pairs that went to each expert in one optimizer step. -> a new bias.
    Raises ValueError for other dtypes, strides or shapes.
    """
    return bias_update_op(bias_E, counts_E, speed)


def example_launches() -> Iterator[Any]:
    """Launches on meta tensors that use every shipped configuration."""
    for experts in (64, 256, 512):
        counts_E = torch.empty(experts, dtype=torch.int64, device="meta")
        yield bias_update_op.launched(torch.empty(experts, device="meta"), counts_E, 1e-3)
