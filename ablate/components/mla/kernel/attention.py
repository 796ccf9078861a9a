"""Causal attention of latent attention in training: queries and keys of two parts, one key part for all heads.

Nothing is joined, expanded or transposed in memory: the kernels read slices of the projections' outputs.

Letters: B sequences, T tokens, H heads, K position-free, P rotated and V value channels; D any of the three widths.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ablate.components.mla.kernel.attention_backward import (
    mla_attention_backward_delta_kernel,
    mla_attention_backward_key_kernel,
    mla_attention_backward_query_kernel,
)
from ablate.components.mla.kernel.attention_forward import mla_attention_forward_kernel
from ablate.kernels.launch import block_of, ceil_div, choose, describe, launch, machine_of, operator
from ablate.kernels.operands import DTYPES, TMA_ALIGNMENT_BYTES, aligned_rows, check_aligned, check_rows, check_shape
from ablate.kernels.table import Configuration, Table

TABLE = Table(Path(__file__).with_name("attention.json"))
KERNELS: dict[str, tuple[str, ...]] = {
    "mla_attention_forward_kernel": ("wgmma", "tma"),
    "mla_attention_backward_delta_kernel": (),
    "mla_attention_backward_query_kernel": ("wgmma", "tma"),
    "mla_attention_backward_key_kernel": ("wgmma", "tma"),
}
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # of the two parts of queries, of keys, and of values
MAX_HEADS = 65535  # of all sequences together: programs along a grid's second axis
# Of float32 on a device: see launch.choose.
EXACT = Configuration(blocks={"BLOCK_M": 16, "BLOCK_N": 16}, num_warps=8, num_stages=1)


@dataclass(frozen=True, slots=True)
class _Operands:
    """The five inputs, what they are called in messages, and how they are cut into blocks."""

    q_nope_BTHK: Tensor
    q_rope_BTHP: Tensor
    k_nope_BTHK: Tensor
    k_rope_BTP: Tensor
    v_BTHV: Tensor
    document_BT: Tensor | None

    @property
    def dims(self) -> dict[str, int]:
        """Widths of the parts: position-free, rotated, value."""
        return {"K": self.q_nope_BTHK.shape[-1], "P": self.q_rope_BTHP.shape[-1], "V": self.v_BTHV.shape[-1]}

    @property
    def widths(self) -> dict[str, int]:
        """Those widths in blocks: powers of two, zeros beyond the edge."""
        return {name: block_of(n) for name, n in self.dims.items()}

    def check(self) -> None:
        if self.q_nope_BTHK.ndim != 4:
            raise ValueError(f"q_nope has shape {tuple(self.q_nope_BTHK.shape)}; it must be (B, T, H, K)")
        b, t, h, _ = self.q_nope_BTHK.shape
        dims, dtype = self.dims, self.q_nope_BTHK.dtype
        for name, x, shape in (
            ("q_nope", self.q_nope_BTHK, (b, t, h, dims["K"])),
            ("q_rope", self.q_rope_BTHP, (b, t, h, dims["P"])),
            ("k_nope", self.k_nope_BTHK, (b, t, h, dims["K"])),
            ("k_rope", self.k_rope_BTP, (b, t, dims["P"])),
            ("v", self.v_BTHV, (b, t, h, dims["V"])),
        ):
            check_shape(name, x, shape)
            check_rows(name, x, DTYPES if name == "q_nope" else (dtype,))
            check_aligned(name, x)
        if b * h > MAX_HEADS:
            raise ValueError(f"{b} sequences of {h} heads are {b * h}; a launch takes {MAX_HEADS}: split the batch")
        if self.document_BT is not None:
            check_shape("document", self.document_BT, (b, t))
            check_rows("document", self.document_BT, (torch.int32,))

    def choose(self, kernel: str) -> Configuration:
        return choose(TABLE, kernel, self.v_BTHV, EXACT, **self.widths, DOCUMENTS=int(self.document_BT is not None))

    def described(self, rows_m: int, rows_n: int) -> tuple[TensorDescriptor, ...]:
        """Blocks of rows_m queries, and of rows_n keys and values."""
        width = self.widths
        return (
            _describe_heads(self.q_nope_BTHK, rows_m, width["K"]),
            _describe_heads(self.q_rope_BTHP, rows_m, width["P"]),
            _describe_heads(self.k_nope_BTHK, rows_n, width["K"]),
            describe(_with_aligned_strides(self.k_rope_BTP), (1, rows_n, width["P"])),
            _describe_heads(self.v_BTHV, rows_n, width["V"]),
        )

    def constants(self, chosen: Configuration, dims: str) -> dict[str, Any]:
        """A launch's options: the configuration, widths of blocks, true widths of the parts named in `dims`."""
        return {
            **{f"DIM_{name}": self.dims[name] for name in dims},
            **{f"BLOCK_{name}": width for name, width in self.widths.items()},
            **chosen.options,
        }


def _with_aligned_strides(x: Tensor) -> Tensor:
    """The same numbers; strides of axes of one, which lead nowhere, become what the memory accelerator accepts."""
    numbers = TMA_ALIGNMENT_BYTES // x.element_size()
    strides = [s if size > 1 else numbers for s, size in zip(x.stride()[:-1], x.shape[:-1], strict=True)]
    return x.as_strided(x.shape, (*strides, 1))


def _describe_heads(x_BTHD: Tensor, rows: int, width: int) -> TensorDescriptor:
    # Tokens next to last: a block's axes of one then lead, and the compiler drops them on the way to shared memory.
    return describe(_with_aligned_strides(x_BTHD).transpose(1, 2), (1, 1, rows, width))


@operator("mla_attention")
def mla_attention_op(
    q_nope_BTHK: Tensor, q_rope_BTHP: Tensor, k_nope_BTHK: Tensor, k_rope_BTP: Tensor, v_BTHV: Tensor,
    scale: float, document_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The operator behind `mla_attention`, with its arguments, result and errors."""
    x = _Operands(q_nope_BTHK, q_rope_BTHP, k_nope_BTHK, k_rope_BTP, v_BTHV, document_BT)
    x.check()
    if not scale > 0:
        raise ValueError(f"the scale is {scale}; it must be positive, such as 1 / sqrt(K + P)")
    o_BTHV, lse_BHT = _outputs(q_nope_BTHK, v_BTHV)
    if not q_nope_BTHK.numel():
        return o_BTHV, lse_BHT
    b, t, h, _ = q_nope_BTHK.shape
    chosen = x.choose("mla_attention_forward")
    m, n = chosen.blocks["BLOCK_M"], chosen.blocks["BLOCK_N"]
    launch(
        mla_attention_forward_kernel, (ceil_div(t, m), b * h), *x.described(m, n), _contiguous(document_BT), o_BTHV,
        lse_BHT, t, h, scale * math.log2(math.e), **x.constants(chosen, "V"),
    )  # fmt: skip
    return o_BTHV, lse_BHT


@mla_attention_op.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor]:
    return _outputs(inputs[0], inputs[4])


def _outputs(q_BTHK: Tensor, v_BTHV: Tensor) -> tuple[Tensor, Tensor]:
    b, t, h, _ = q_BTHK.shape
    return v_BTHV.new_empty(v_BTHV.shape), q_BTHK.new_empty(b, h, t, dtype=torch.float32)


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


@operator("mla_attention_backward")
def mla_attention_backward_op(
    do_BTHV: Tensor, q_nope_BTHK: Tensor, q_rope_BTHP: Tensor, k_nope_BTHK: Tensor, k_rope_BTP: Tensor, v_BTHV: Tensor,
    o_BTHV: Tensor, lse_BHT: Tensor, scale: float, document_BT: Tensor | None,
) -> Gradients:  # fmt: skip
    """Gradients of the five inputs, contiguous, from that of the output, do, and from what the forward pass gave."""
    x = _Operands(q_nope_BTHK, q_rope_BTHP, k_nope_BTHK, k_rope_BTP, v_BTHV, document_BT)
    if not q_nope_BTHK.numel():
        inputs = (q_nope_BTHK, q_rope_BTHP, k_nope_BTHK, k_rope_BTP, v_BTHV)
        dq_nope, dq_rope, dk_nope, dk_rope, dv = (torch.zeros_like(g) for g in inputs)
        return dq_nope, dq_rope, dk_nope, dk_rope, dv
    do_BTHV = aligned_rows(do_BTHV)
    delta_BHT = _delta(x, o_BTHV, do_BTHV)
    dq_nope, dq_rope = _query_gradients(x, do_BTHV, lse_BHT, delta_BHT, scale)
    dk_nope, dk_rope, dv = _key_gradients(x, do_BTHV, lse_BHT, delta_BHT, scale)
    return dq_nope, dq_rope, dk_nope, dk_rope, dv


@mla_attention_backward_op.register_fake
def _(*inputs: Any) -> Gradients:
    return _gradients(*inputs[1:6])


def _gradients(q_nope: Tensor, q_rope: Tensor, k_nope: Tensor, k_rope: Tensor, v: Tensor) -> Gradients:
    dq_nope, dq_rope, dk_nope, dk_rope, dv = (x.new_empty(x.shape) for x in (q_nope, q_rope, k_nope, k_rope, v))
    return dq_nope, dq_rope, dk_nope, dk_rope, dv


def _delta(x: _Operands, o_BTHV: Tensor, do_BTHV: Tensor) -> Tensor:
    b, t, h, v = o_BTHV.shape
    delta_BHT = o_BTHV.new_empty(b, h, t, dtype=torch.float32)
    chosen = TABLE.choose("mla_attention_backward_delta", machine_of(o_BTHV.device), **x.widths)
    launch(
        mla_attention_backward_delta_kernel, (ceil_div(t, chosen.blocks["BLOCK_M"]), b * h), o_BTHV, do_BTHV,
        delta_BHT, t, h, *do_BTHV.stride()[:3], DIM_V=v, BLOCK_V=x.widths["V"], **chosen.options,
    )  # fmt: skip
    return delta_BHT


def _query_gradients(
    x: _Operands, do_BTHV: Tensor, lse_BHT: Tensor, delta_BHT: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    b, t, h, _ = x.q_nope_BTHK.shape
    dq_nope_BTHK, dq_rope_BTHP = (q.new_empty(q.shape) for q in (x.q_nope_BTHK, x.q_rope_BTHP))
    chosen = x.choose("mla_attention_backward_query")
    m, n = chosen.blocks["BLOCK_M"], chosen.blocks["BLOCK_N"]
    launch(
        mla_attention_backward_query_kernel, (ceil_div(t, m), b * h), *x.described(m, n),
        _describe_heads(do_BTHV, m, x.widths["V"]), _contiguous(x.document_BT), lse_BHT, delta_BHT, dq_nope_BTHK,
        dq_rope_BTHP, t, h, scale, scale * math.log2(math.e), **x.constants(chosen, "KP"),
    )  # fmt: skip
    return dq_nope_BTHK, dq_rope_BTHP


def _key_gradients(
    x: _Operands, do_BTHV: Tensor, lse_BHT: Tensor, delta_BHT: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    b, t, h, _ = x.k_nope_BTHK.shape
    dk_nope_BTHK, dv_BTHV = x.k_nope_BTHK.new_empty(x.k_nope_BTHK.shape), x.v_BTHV.new_empty(x.v_BTHV.shape)
    dk_rope_BTHP = x.q_rope_BTHP.new_empty(x.q_rope_BTHP.shape, dtype=torch.float32)
    chosen = x.choose("mla_attention_backward_key")
    m, n = chosen.blocks["BLOCK_M"], chosen.blocks["BLOCK_N"]
    last_BT = None if x.document_BT is None else last_queries(x.document_BT)
    launch(
        mla_attention_backward_key_kernel, (ceil_div(t, n), b * h), *x.described(m, n),
        _describe_heads(do_BTHV, m, x.widths["V"]), last_BT, lse_BHT, delta_BHT, dk_nope_BTHK, dk_rope_BTHP, dv_BTHV,
        t, h, scale, scale * math.log2(math.e), **x.constants(chosen, "KPV"),
    )  # fmt: skip
    # Heads' parts are stored apart and summed in one order, so that a run repeats bit for bit.
    return dk_nope_BTHK, dk_rope_BTHP.sum(2).to(x.k_rope_BTP.dtype), dv_BTHV


def last_queries(document_BT: Tensor) -> Tensor:
    """(B, T) int32: the last query that sees each key, where queries see no key before their document's first."""
    b, t = document_BT.shape
    token_BT = torch.arange(t, dtype=torch.int32, device=document_BT.device).repeat(b, 1)
    return torch.searchsorted(document_BT.contiguous(), token_BT, right=True, out_int32=True) - 1


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, scale, document_BT = inputs
    ctx.save_for_backward(*tensors, *output, document_BT)
    ctx.scale = scale
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # or zeros are made for the logarithms


def _backward(ctx: Any, do_BTHV: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, document_BT = ctx.saved_tensors
    return (*mla_attention_backward_op(do_BTHV, *tensors, ctx.scale, document_BT), None, None)


mla_attention_op.register_autograd(_backward, setup_context=_keep)


def mla_attention(
    q_nope_BTHK: Tensor,
    q_rope_BTHP: Tensor,
    k_nope_BTHK: Tensor,
    k_rope_BTP: Tensor,
    v_BTHV: Tensor,
    *,
    scale: float,
    document_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal softmax attention of latent attention (arXiv:2412.19437, eq. 10), rotation already applied.

    The score of query i and key j in head h is scale * (q_nope_ih . k_nope_jh + q_rope_ih . k_rope_j).
    document_BT: int32, the first position of each token's document, never falling along T and never after the token;
    query i sees keys document[i] <= j <= i. None: one document. All else float32 or all bfloat16; last axes
    contiguous, other strides and starts in multiples of 16 bytes.

    -> o_BTHV, contiguous, and lse_BHT in float32: the base-2 logarithm of the sum of exp(score), not differentiable.
    Softmax in float32. Raises ValueError for other dtypes, shapes or strides, and for a scale that is not positive.
    """
    return mla_attention_op(q_nope_BTHK, q_rope_BTHP, k_nope_BTHK, k_rope_BTP, v_BTHV, scale, document_BT)


def example_launches() -> Iterator[Any]:
    """Launches on meta tensors that use every shipped configuration."""
    b, t, h = 2, 4096, 16
    for k, p, v in ((128, 64, 128), (64, 32, 64), (96, 32, 80)):
        like = torch.empty(0, dtype=torch.bfloat16, device="meta")
        q_nope, q_rope = like.new_empty(b, t, h, k + p).split([k, p], -1)
        k_nope, value = like.new_empty(b, t, h, k + v).split([k, v], -1)
        inputs = (q_nope, q_rope, k_nope, like.new_empty(b, t, p), value)
        for document_BT in (None, like.new_empty(b, t, dtype=torch.int32)):
            o, lse = mla_attention_op.launched(*inputs, 0.1, document_BT)
            yield mla_attention_backward_op.launched(o, *inputs, o, lse, 0.1, document_BT)
