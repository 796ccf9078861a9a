"""Output head and cross-entropy in one operator that never has the logits whole: chunks of tokens, gradients too."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ablate.kernels.launch import ceil_div, launch, machine_of, operator
from ablate.kernels.operands import DTYPES, check_rows, check_shape
from ablate.kernels.table import Table

TABLE = Table(Path(__file__).with_name("cross_entropy.json"))
KERNELS: dict[str, tuple[str, ...]] = {"cross_entropy_forward_kernel": ()}

# A chunk reads and writes the weight's float32 gradient once: at 4.3 TB/s and 700 TFLOP/s that is 217 / n of the time
# of its three products, whatever the vocabulary: 5 % at n = 4096 tokens, 43 % at 512. 1 GiB of logits is 4096 tokens of
# a vocabulary of 129,280 in bfloat16; beyond 8192 tokens the share no longer falls noticeably.
LOGITS_BYTES = 2**30
MAX_TOKENS = 8192
ALIGNED_COLUMNS = 16  # rows of logits start at multiples of this, which both the products and the kernel read faster
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # what deterministic algorithms ask for


@triton.jit
def cross_entropy_forward_kernel(
    logits_ptr, targets_ptr, loss_ptr, n_rows, n_classes, stride_ln, ignore_index,
    ROWS: tl.constexpr, BLOCK_C: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """Loss of each row, and softmax - onehot in place of its logits; zeros where the target is ignored."""
    row_N = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column_C = tl.arange(0, BLOCK_C)
    target_N = tl.load(targets_ptr + row_N, row_N < n_rows, other=ignore_index)
    counted_N = target_N != ignore_index
    known_N = counted_N & (target_N >= 0) & (target_N < n_classes)
    start_N = logits_ptr + row_N.to(tl.int64) * stride_ln

    # From the lowest finite number, so that a row of minus infinities is not infinity minus infinity.
    most_N = tl.full((ROWS,), -3.4028234663852886e38, tl.float32)
    sum_N = tl.zeros((ROWS,), tl.float32)
    for first in range(0, n_classes, BLOCK_C):
        inside_NC = counted_N[:, None] & (first + column_C < n_classes)[None, :]
        x_NC = tl.load(start_N[:, None] + (first + column_C)[None, :], inside_NC, other=float("-inf")).to(tl.float32)
        before_N = most_N
        most_N = tl.maximum(most_N, tl.max(x_NC, 1))
        sum_N = sum_N * tl.exp(before_N - most_N) + tl.sum(tl.exp(x_NC - most_N[:, None]), 1)
    sum_N = tl.where(counted_N, sum_N, 1.0)
    # A target that is no class leaves its loss NaN: seen, where a fault of the device would end the process.
    of_target_N = tl.load(start_N + target_N, known_N, other=float("nan")).to(tl.float32)
    # Not by way of the log-sum-exp itself, whose rounding is that of the largest logit.
    loss_N = tl.log(sum_N) + (most_N - of_target_N)
    tl.store(loss_ptr + row_N, tl.where(counted_N, loss_N, 0.0), row_N < n_rows)

    if GRADIENT:
        # The target's logit is read before another thread overwrites it.
        tl.debug_barrier()
        scale_N = 1.0 / sum_N
        for first in range(0, n_classes, BLOCK_C):
            at_NC = start_N[:, None] + (first + column_C)[None, :]
            inside_NC = (row_N < n_rows)[:, None] & (first + column_C < n_classes)[None, :]
            x_NC = tl.load(at_NC, inside_NC & counted_N[:, None], other=float("-inf")).to(tl.float32)
            hit_NC = (first + column_C)[None, :] == target_N[:, None]
            share_NC = tl.exp(x_NC - most_N[:, None]) * scale_N[:, None]
            slope_NC = tl.where(counted_N[:, None], share_NC - tl.where(hit_NC, 1.0, 0.0), 0.0)
            tl.store(at_NC, slope_NC.to(logits_ptr.dtype.element_ty), inside_NC)


@operator("linear_cross_entropy")
def linear_cross_entropy_op(
    hidden_ND: Tensor, weight_CD: Tensor, targets_N: Tensor, ignore_index: int, with_gradients: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean loss, number of targets that count, and the sum's gradients by hidden and by weight (empty unless wanted).

    The gradients are of the SUM over the tokens, so that they need no scale of their own before the backward pass.
    """
    (n, d), c = hidden_ND.shape, weight_CD.shape[0]
    check_rows("the head's input", hidden_ND, DTYPES, 2)
    check_rows("the head's weight", weight_CD, DTYPES, 2)
    check_rows("the targets", targets_N, (torch.int64,), 1)
    check_shape("the head's weight", weight_CD, (c, d))
    check_shape("the targets", targets_N, (n,))
    loss_N = hidden_ND.new_empty(n, dtype=torch.float32)
    _, _, dhidden_ND, dweight_CD = _outputs(hidden_ND, weight_CD, with_gradients)
    product_CD, step = weight_CD.to(hidden_ND.dtype), tokens_at_once(n, c, hidden_ND.element_size())
    chosen = TABLE.choose("cross_entropy_forward", machine_of(hidden_ND.device), C=c)
    padded_NC = hidden_ND.new_empty(min(n, step), ceil_div(c, ALIGNED_COLUMNS) * ALIGNED_COLUMNS)
    # A CPU with AMX multiplies bfloat16 in pairs of columns, and an odd last one with what lies behind it times zero.
    padded_NC[:, c:] = 0
    logits_NC = padded_NC[:, :c]
    for first in range(0, n, step):
        part_ND = hidden_ND[first : first + step]
        part_NC, rows = logits_NC[: part_ND.shape[0]], chosen.blocks["ROWS"]
        torch.mm(part_ND, product_CD.T, out=part_NC)
        launch(
            cross_entropy_forward_kernel, (ceil_div(part_ND.shape[0], rows),), part_NC, targets_N[first : first + step],
            loss_N[first : first + step], part_ND.shape[0], c, part_NC.stride(0), ignore_index,
            **chosen.options, GRADIENT=with_gradients,
        )  # fmt: skip
        if with_gradients:
            torch.mm(part_NC, product_CD, out=dhidden_ND[first : first + step])
            _accumulate(dweight_CD, part_NC.T, part_ND, first=first == 0)
    if with_gradients and not n:
        dweight_CD.zero_()
    n_counted = (targets_N != ignore_index).sum()
    return loss_N.sum() / n_counted, n_counted, dhidden_ND, dweight_CD


def tokens_at_once(n: int, n_classes: int, element_bytes: int) -> int:
    """Tokens of a chunk: as many as LOGITS_BYTES allow, and chunks as equal as multiples of 128 can be."""
    most = max(128, min(MAX_TOKENS, LOGITS_BYTES // (max(1, n_classes) * element_bytes)) // 128 * 128)
    n_chunks = max(1, ceil_div(n, most))
    return ceil_div(max(1, n), n_chunks * 128) * 128


def _accumulate(total_CD: Tensor, g_CN: Tensor, x_ND: Tensor, *, first: bool) -> None:
    """total = (first ? 0 : total) + g x, summed in float32 within a chunk and between chunks."""
    beta = 0 if first else 1
    if g_CN.dtype == torch.float32:
        torch.addmm(total_CD, g_CN, x_ND, beta=beta, out=total_CD)
    elif g_CN.device.type != "cuda":  # no product there keeps float32 of bfloat16
        torch.addmm(total_CD, g_CN.float(), x_ND.float(), beta=beta, out=total_CD)
    elif first or not _adds_to_float32(g_CN.device):
        product_CD = torch.mm(g_CN, x_ND, out_dtype=torch.float32, **({"out": total_CD} if first else {}))
        if not first:
            total_CD += product_CD
    else:
        torch.addmm(total_CD, g_CN, x_ND, out_dtype=torch.float32, out=total_CD)


@cache
def _adds_to_float32(device: torch.device) -> bool:
    """Whether torch adds a product of bfloat16 to a float32 sum in place; some releases want the sum in bfloat16.

    What fails for another cause is raised, and so not remembered as an answer: memory that is full, a device that is
    lost, deterministic algorithms without CUBLAS_WORKSPACE_CONFIG.
    """
    total, x = torch.zeros(16, 16, device=device), torch.zeros(16, 16, device=device, dtype=torch.bfloat16)
    try:
        torch.addmm(total, x, x, out_dtype=torch.float32, out=total)
    except RuntimeError as fault:
        if isinstance(fault, torch.OutOfMemoryError | torch.AcceleratorError) or WORKSPACE in str(fault):
            raise
        return False
    return True


@linear_cross_entropy_op.register_fake
def _(
    hidden_ND: Tensor, weight_CD: Tensor, targets_N: Tensor, ignore_index: int, with_gradients: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(hidden_ND, weight_CD, with_gradients)


def _outputs(hidden_ND: Tensor, weight_CD: Tensor, with_gradients: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (n, d), c = hidden_ND.shape, weight_CD.shape[0]
    return (
        hidden_ND.new_empty((), dtype=torch.float32),
        hidden_ND.new_empty((), dtype=torch.int64),
        hidden_ND.new_empty(n if with_gradients else 0, d),
        weight_CD.new_empty(c if with_gradients else 0, d, dtype=torch.float32),
    )


@operator("linear_cross_entropy_backward")
def linear_cross_entropy_backward_op(
    dhidden_ND: Tensor, dweight_CD: Tensor, n_counted: Tensor, g: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The stored gradients of the sum, times g / n. One read and one write of each."""
    scale = g.float() / n_counted.clamp_min(1)  # no target counts: gradients of zero, as the reference has
    found_CD = torch.empty_like(dweight_CD, dtype=dtype)
    return dhidden_ND * scale, torch.mul(dweight_CD, scale, out=found_CD)


@linear_cross_entropy_backward_op.register_fake
def _(
    dhidden_ND: Tensor, dweight_CD: Tensor, n_counted: Tensor, g: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(dhidden_ND), torch.empty_like(dweight_CD, dtype=dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    if not inputs[4]:
        raise ValueError("linear_cross_entropy was called without gradients and is differentiated; ask for them")
    ctx.set_materialize_grads(False)  # or zeros of the size of the weight are made for an output that has no gradient
    ctx.dtype = inputs[1].dtype
    ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, g: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None, None]:
    if g is None:
        return None, None, None, None, None
    n_counted, dhidden_ND, dweight_CD = ctx.saved_tensors
    return *linear_cross_entropy_backward_op(dhidden_ND, dweight_CD, n_counted, g, ctx.dtype), None, None, None


linear_cross_entropy_op.register_autograd(_backward, setup_context=_keep)


def linear_cross_entropy(hidden: Tensor, weight_CD: Tensor, targets: Tensor, *, ignore_index: int = -100) -> Tensor:
    """F.cross_entropy(hidden @ weight.T, targets) without the logits: the mean over targets that are not ignored.

    hidden: (..., D), float32 or bfloat16; weight: (C, D), either (float32 is rounded to hidden's dtype once); targets:
    (...), int64. -> float32 scalar; NaN where every target is ignored, or one is neither ignored nor a class.
    Logits are made in hidden's dtype, a chunk of at most 1 GiB at a time; the softmax and all sums are float32. Where a
    gradient is wanted both are made in the forward pass, since the logits are there, and only scaled in the backward
    pass: between the two passes N D numbers of hidden's dtype and C D of float32 are kept, instead of N C logits.
    Raises ValueError for other dtypes, shapes or strides.
    """
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or weight_CD.requires_grad)
    loss, _, _, _ = linear_cross_entropy_op(
        hidden.reshape(-1, hidden.shape[-1]), weight_CD, targets.reshape(-1), ignore_index, wanted
    )
    return loss


def example_launches() -> Iterator[Any]:
    """Launches on meta tensors that use every shipped configuration."""
    for n_classes in (1000, 8192, 129280):
        hidden_ND = torch.empty(4096, 2048, dtype=torch.bfloat16, device="meta")
        weight_CD = torch.empty(n_classes, 2048, device="meta")
        targets_N = torch.empty(4096, dtype=torch.int64, device="meta")
        for wanted in (True, False):
            yield linear_cross_entropy_op.launched(hidden_ND, weight_CD, targets_N, -100, wanted)
