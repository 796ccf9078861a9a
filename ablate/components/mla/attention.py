"""Softmax attention by each backend that needs no kernel of this program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def attention(
    q_BHTK: Tensor,
    k_BHSK: Tensor,
    v_BHSV: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(scale q k^T) v; `attn_mask` is true where a key may be seen. -> (B, H, T, V)

    enable_gqa: keys and values may have fewer heads than queries, each for as many in a row.
    """
    if enable_gqa:
        groups = q_BHTK.shape[1] // k_BHSK.shape[1]
        k_BHSK, v_BHSV = (x.repeat_interleave(groups, dim=1) for x in (k_BHSK, v_BHSV))
    scores = q_BHTK @ k_BHSK.transpose(-1, -2) * (q_BHTK.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    return scores.softmax(dim=-1) @ v_BHSV


def library_attention(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSV: Tensor, **options: Any) -> Tensor:
    """torch's attention. On a CPU values are widened to the keys' width, since its fused kernel wants them equal.

    That saves a quarter of the time (B 8, H 4, T 128, K 24, V 16, one thread: 6.6 to 4.9 ms with the backward pass).
    """
    missing = k_BHSK.shape[-1] - v_BHSV.shape[-1]
    if missing <= 0 or v_BHSV.device.type != "cpu":
        return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSV, **options)
    wide_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHSK, F.pad(v_BHSV, (0, missing)), **options)
    return wide_BHTK[..., : v_BHSV.shape[-1]]


def cudnn_attention(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSV: Tensor, **options: Any) -> Tensor:
    """torch's attention by cuDNN's kernel and no other: an error where cuDNN does not take it."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSV, **options)


ATTENTION: dict[str, Callable[..., Tensor]] = {
    "library": library_attention,
    "reference": attention,
    "cudnn": cudnn_attention,
}
