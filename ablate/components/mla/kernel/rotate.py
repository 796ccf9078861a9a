"""Rotary position embedding (arXiv:2104.09864, eq. 34) of a slice of channels, read where it lies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ablate.kernels.launch import ceil_div, launch, machine_of, next_power_of_2, operator
from ablate.kernels.operands import DTYPES, check_contiguous, check_rows, check_shape, contiguous_rows
from ablate.kernels.table import Table

TABLE = Table(Path(__file__).with_name("rotate.json"))
KERNELS: dict[str, tuple[str, ...]] = {"mla_rotate_forward_kernel": ()}


@triton.jit
def turn(first, second, cos, sin):
    """The pairs (first, second) turned by the angles; `sin` negated turns them back."""
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def mla_rotate_forward_kernel(
    x_ptr, cos_ptr, sin_ptr, y_ptr, length, heads, half, stride_xb, stride_xt, stride_xh,
    INVERSE: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """`half`: pairs of channels, P / 2. The table is read once a token, not once a head."""
    token_T = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    head_H = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pair_P = tl.arange(0, BLOCK_P)
    batch = tl.program_id(2).to(tl.int64)
    token_T11, head_1H1, pair_11P = token_T[:, None, None], head_H[None, :, None], pair_P[None, None, :]

    inside_T1P = (token_T11 < length) & (pair_11P < half)
    angle_T1P = token_T11.to(tl.int64) * half + pair_11P
    cos_T1P = tl.load(cos_ptr + angle_T1P, inside_T1P, other=0.0)
    sin_T1P = tl.load(sin_ptr + angle_T1P, inside_T1P, other=0.0)
    if INVERSE:
        sin_T1P = -sin_T1P

    inside_THP = inside_T1P & (head_1H1 < heads)
    from_THP = batch * stride_xb + token_T11.to(tl.int64) * stride_xt + head_1H1.to(tl.int64) * stride_xh + pair_11P
    first_THP = tl.load(x_ptr + from_THP, inside_THP, other=0.0).to(tl.float32)
    second_THP = tl.load(x_ptr + from_THP + half, inside_THP, other=0.0).to(tl.float32)
    first_THP, second_THP = turn(first_THP, second_THP, cos_T1P, sin_T1P)
    to_THP = ((batch * length + token_T11) * heads + head_1H1) * (2 * half) + pair_11P
    tl.store(y_ptr + to_THP, first_THP.to(y_ptr.dtype.element_ty), inside_THP)
    tl.store(y_ptr + to_THP + half, second_THP.to(y_ptr.dtype.element_ty), inside_THP)


@operator("mla_rotate")
def rotate_op(x_BTHP: Tensor, cos_TP: Tensor, sin_TP: Tensor, inverse: bool) -> Tensor:
    check_rows("what is rotated", x_BTHP, DTYPES, 4)
    b, t, h, p = x_BTHP.shape
    check_tables(cos_TP, sin_TP, t, p)
    y_BTHP = x_BTHP.new_empty(b, t, h, p)
    chosen = TABLE.choose("mla_rotate_forward", machine_of(x_BTHP.device), H=h)
    grid = ceil_div(t, chosen.blocks["TOKENS"]), ceil_div(h, chosen.blocks["HEADS"]), b
    launch(
        mla_rotate_forward_kernel, grid, x_BTHP, cos_TP, sin_TP, y_BTHP, t, h, p // 2, *x_BTHP.stride()[:3],
        INVERSE=inverse, **chosen.options, BLOCK_P=next_power_of_2(p // 2),
    )  # fmt: skip
    return y_BTHP


@rotate_op.register_fake
def _(x_BTHP: Tensor, cos_TP: Tensor, sin_TP: Tensor, inverse: bool) -> Tensor:
    return x_BTHP.new_empty(x_BTHP.shape)


def check_tables(cos_TP: Tensor, sin_TP: Tensor, length: int, rope_dim: int) -> None:
    """ValueError unless both are float32, contiguous and (T, P / 2) for an even P."""
    if rope_dim % 2 or not rope_dim:
        raise ValueError(f"what is rotated has {rope_dim} channels; they are turned in pairs: give an even number")
    for name, table in (("the table of cosines", cos_TP), ("the table of sines", sin_TP)):
        check_rows(name, table, (torch.float32,), 2)
        check_shape(name, table, (length, rope_dim // 2))
        check_contiguous(name, table)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1], inputs[2])
    ctx.inverse = inputs[3]


def _backward(ctx: Any, g_BTHP: Tensor) -> tuple[Tensor, None, None, None]:
    return rotate_op(contiguous_rows(g_BTHP), *ctx.saved_tensors, not ctx.inverse), None, None, None


rotate_op.register_autograd(_backward, setup_context=_keep)


def rotate(x_BTHP: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> Tensor:
    """The channel pairs (i, i + P / 2) of every head turned by their position's angles (arXiv:2104.09864, eq. 34).

    x: (B, T, H, P), float32 or bfloat16; last axis contiguous, other strides free, so a slice of a projection is read
    where it lies. cos, sin: float32 (T, P / 2). -> (B, T, H, P), contiguous, dtype of x. The arithmetic is float32
    and rounds once: in bfloat16 closer to the exact product than `Rotation.rotate`, which rounds the table, each
    product and the sum. The gradient is the same kernel turning back. Raises ValueError for other dtypes or strides.
    """
    return rotate_op(x_BTHP, cos_TP, sin_TP, False)


def example_launches() -> Iterator[Any]:
    """Launches on meta tensors that use every shipped configuration."""
    cos_TP = torch.empty(4096, 32, device="meta")
    for heads, width in ((1, 576), (16, 192), (128, 192)):
        x_BTHP = torch.empty(2, 4096, heads, width, dtype=torch.bfloat16, device="meta")[..., width - 64 :]
        for inverse in (False, True):
            yield rotate_op.launched(x_BTHP, cos_TP, cos_TP, inverse)
