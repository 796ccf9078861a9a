"""Attention modules: latent attention with decoupled rotary keys, and grouped-query attention; both with a cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ablate.components.mla.attention import ATTENTION
from ablate.model.block import Rotation
from ablate.model.modules import unquantised
from ablate.spec.backends import require_concrete
from ablate.spec.nodes import BuildContext


@dataclass(slots=True)
class Cache:
    """What attention keeps of past tokens: tensors (B, capacity, ...), of which the first `length` tokens are filled.

    Latent attention keeps R latents and one rotated key a token, for all heads together; grouped-query attention a key
    and a value for each of its key-value heads.
    """

    kept: tuple[Tensor, ...]
    length: int = 0

    def extend(self, *new: Tensor) -> tuple[Tensor, ...]:
        """All that is kept, the new tokens' (B, T, ...) behind; ValueError if they do not fit."""
        (batch, t), (rows, capacity) = new[0].shape[:2], self.kept[0].shape[:2]
        if batch != rows or self.length + t > capacity:
            raise ValueError(
                f"{batch} x {t} tokens behind {self.length} do not fit a cache of {rows} x {capacity}; "
                "make one that is large enough (new_cache) before the first token is decoded"
            )
        end = self.length + t
        for kept, tokens in zip(self.kept, new, strict=True):
            kept[:, self.length : end] = tokens
        self.length = end
        return tuple(kept[:, :end] for kept in self.kept)


class LatentAttention(nn.Module):
    """Multi-head latent attention (arXiv:2412.19437, eqs. 1-11). x_BTD -> y_BTD, causal.

    Training expands keys and values from the latent; `decode` absorbs the expansion into the query and the
    output instead and attends to the cached latents themselves. The scale is that of the joined head.
    """

    def __init__(
        self,
        context: BuildContext,
        *,
        n_heads: int,
        q_lora_rank: int,
        kv_lora_rank: int,
        qk_nope_head_dim: int,
        qk_rope_head_dim: int,
        v_head_dim: int,
        backend: str,
    ) -> None:
        """`q_lora_rank` 0: queries are not compressed. `backend`: one of FORMS."""
        super().__init__()
        linear: Any = context.linear.linear
        self.backend = require_concrete(backend)
        self.n_heads, self.q_lora_rank, self.kv_lora_rank = n_heads, q_lora_rank, kv_lora_rank
        self.qk_dims, self.v_head_dim = (qk_nope_head_dim, qk_rope_head_dim), v_head_dim
        qk_head_dim = qk_nope_head_dim + qk_rope_head_dim
        if q_lora_rank:
            self.q_down = linear(context.dim, q_lora_rank)
            self.q_norm = context.input_norm(q_lora_rank)
            self.q_up = linear(q_lora_rank, n_heads * qk_head_dim)
        else:
            self.q = linear(context.dim, n_heads * qk_head_dim)
        self.kv_down = linear(context.dim, kv_lora_rank + qk_rope_head_dim)
        self.kv_norm = context.input_norm(kv_lora_rank)
        self.kv_up = linear(kv_lora_rank, n_heads * (qk_nope_head_dim + v_head_dim))
        self.output = linear(n_heads * v_head_dim, context.dim)
        self.scale = qk_head_dim**-0.5

    def project(self, x_BTD: Tensor) -> tuple[Tensor, Any, Tensor]:
        """Queries (B, T, H, K), the normed latent (B, T, R), and the key (B, T, P) of all heads; nothing rotated."""
        q = self.q_up(self.q_norm(self.q_down(x_BTD))) if self.q_lora_rank else self.q(x_BTD)
        latent_BTR, key_BTP = self.kv_down(x_BTD).split([self.kv_lora_rank, self.qk_dims[1]], dim=-1)
        return q.unflatten(-1, (self.n_heads, -1)), self.kv_norm(latent_BTR), key_BTP

    def queries(self, q_BTHK: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Position-free (B, T, H, K_nope) and rotated (B, T, H, K_rope) parts."""
        nope, rope = q_BTHK.split(self.qk_dims, dim=-1)
        return nope, rotation.rotate(rope)

    def forward(self, x_BTD: Tensor, rotation: Rotation) -> Tensor:
        q_BTHK, latent_BTR, key_BTP = self.project(x_BTD)
        kv_BTHX = self.kv_up(latent_BTR).unflatten(-1, (self.n_heads, -1))
        y_BTHV = FORMS[self.backend](self, q_BTHK, kv_BTHX, key_BTP, rotation)
        return self.output(y_BTHV.flatten(2))

    def new_cache(self, batch: int, capacity: int) -> Cache:
        like, widths = self.kv_norm.weight, (self.kv_lora_rank, self.qk_dims[1])
        return Cache(tuple(like.new_empty(batch, capacity, width) for width in widths))

    def decode(self, x_BTD: Tensor, rotation: Rotation, cache: Cache) -> Tensor:
        """Attention of new tokens to the cache and themselves, in the absorbed form."""
        start = cache.length
        q_BTHK, latent_BTR, key_BTP = self.project(x_BTD)
        q_nope, q_rope = self.queries(q_BTHK, rotation)
        key_BTP = rotation.rotate(key_BTP.unsqueeze(2)).squeeze(2)
        past_BSR, keys_BSP = cache.extend(unquantised(latent_BTR), key_BTP)
        up_HXR = self.kv_up.get_parameter("weight").unflatten(0, (self.n_heads, -1))
        up_key, up_value = up_HXR.split([self.qk_dims[0], self.v_head_dim], dim=1)
        q_latent = torch.einsum("bthk,hkr->bthr", q_nope, up_key)
        attend = _decode_launched if self.backend == "triton" else _decode
        y_BTHR = attend(q_latent, q_rope, past_BSR, keys_BSP, start, self.scale)
        return self.output(torch.einsum("bthr,hvr->bthv", y_BTHR, up_value).flatten(2))


def _decode(
    q_BTHR: Tensor, q_rope_BTHP: Tensor, past_BSR: Tensor, keys_BSP: Tensor, start: int, scale: float
) -> Tensor:
    """Attention of the tokens from `start` on to cached latents, which are keys and values at once. -> (B, T, H, R)"""
    scores = torch.einsum("bthr,bsr->bhts", q_BTHR, past_BSR)
    scores = (scores + torch.einsum("bthp,bsp->bhts", q_rope_BTHP, keys_BSP)) * scale
    allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril(start)
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
    return torch.einsum("bhts,bsr->bthr", weights, past_BSR)


def _decode_launched(*operands: Any) -> Tensor:
    from ablate.components.mla.kernel.decode import latent_decode

    return latent_decode(*operands)


def _joined(module: LatentAttention, q_BTHK: Tensor, kv_BTHX: Tensor, key_BTP: Tensor, rotation: Rotation) -> Tensor:
    """Heads put together by torch, the shared key copied to each of them. -> (B, T, H, V)"""
    q_BTHK = torch.cat(module.queries(q_BTHK, rotation), dim=-1)
    k_nope, v_BTHV = kv_BTHX.split([module.qk_dims[0], module.v_head_dim], dim=-1)
    rotated_BT1P = rotation.rotate(key_BTP.unsqueeze(2))
    k_BTHK = torch.cat([k_nope, rotated_BT1P.expand(-1, -1, module.n_heads, -1)], dim=-1)
    return _attend(module.backend, q_BTHK, k_BTHK, v_BTHV, module.scale)


def _assembled(module: LatentAttention, q_BTHK: Tensor, kv_BTHX: Tensor, key_BTP: Tensor, rotation: Rotation) -> Tensor:
    """Heads put together in one launch, for cuDNN's attention. -> (B, T, H, V)"""
    from ablate.components.mla.kernel.assembly import assemble

    q_BTHK, k_BTHK, v_BTHV = assemble(q_BTHK, kv_BTHX, key_BTP, rotation.cos_TP, rotation.sin_TP, module.qk_dims[0])
    return _attend(module.backend, q_BTHK, k_BTHK, v_BTHV, module.scale)


def _launched(module: LatentAttention, q_BTHK: Tensor, kv_BTHX: Tensor, key_BTP: Tensor, rotation: Rotation) -> Tensor:
    """Attention whose kernels read the shared key once and the projections where they lie. -> (B, T, H, V)"""
    from ablate.components.mla.kernel.attention import mla_attention
    from ablate.components.mla.kernel.rotate import rotate

    q_nope, q_rope = q_BTHK.split(module.qk_dims, dim=-1)
    k_nope, v_BTHV = kv_BTHX.split([module.qk_dims[0], module.v_head_dim], dim=-1)
    q_rope = rotate(q_rope, rotation.cos_TP, rotation.sin_TP)
    k_rope = rotate(key_BTP.unsqueeze(2), rotation.cos_TP, rotation.sin_TP).squeeze(2)
    return mla_attention(q_nope, q_rope, k_nope, k_rope, v_BTHV, scale=module.scale)[0]


def _attend(backend: str, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, scale: float) -> Tensor:
    y_BHTV = ATTENTION[backend](
        q_BTHK.transpose(1, 2), k_BTHK.transpose(1, 2), v_BTHV.transpose(1, 2), is_causal=True, scale=scale
    )
    return y_BHTV.transpose(1, 2)


FORMS = {"library": _joined, "reference": _joined, "cudnn": _assembled, "triton": _launched}


class GroupedQueryAttention(nn.Module):
    """Grouped-query attention (arXiv:2305.13245) with rotary queries and keys. x_BTD -> y_BTD, causal."""

    def __init__(self, context: BuildContext, *, n_heads: int, n_kv_heads: int, head_dim: int, backend: str) -> None:
        """`backend`: one of ATTENTION."""
        super().__init__()
        linear: Any = context.linear.linear
        self.backend = require_concrete(backend)
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim
        self.q = linear(context.dim, n_heads * head_dim)
        self.k = linear(context.dim, n_kv_heads * head_dim)
        self.v = linear(context.dim, n_kv_heads * head_dim)
        self.output = linear(n_heads * head_dim, context.dim)

    def heads(self, x_BTD: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (p(x_BTD).unflatten(-1, (-1, self.head_dim)) for p in (self.q, self.k, self.v))
        return rotation.rotate(q), rotation.rotate(k), v

    def attend(self, q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BSGK, v_BSGK))
        y_BHTK = ATTENTION[self.backend](q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        return self.output(y_BHTK.transpose(1, 2).flatten(2))

    def forward(self, x_BTD: Tensor, rotation: Rotation) -> Tensor:
        return self.attend(*self.heads(x_BTD, rotation), None)

    def new_cache(self, batch: int, capacity: int) -> Cache:
        like, shape = self.k.get_parameter("weight"), (batch, capacity, self.n_kv_heads, self.head_dim)
        return Cache((like.new_empty(shape), like.new_empty(shape)))

    def decode(self, x_BTD: Tensor, rotation: Rotation, cache: Cache) -> Tensor:
        """Attention of new tokens to the cache and themselves."""
        start = cache.length
        q, k, v = self.heads(x_BTD, rotation)
        keys, values = cache.extend(k, v)
        allowed = torch.ones(q.shape[1], cache.length, dtype=torch.bool, device=x_BTD.device).tril(start)
        return self.attend(q, keys, values, allowed)
