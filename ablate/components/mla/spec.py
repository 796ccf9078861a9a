"""Nodes of the attention slot: latent attention (on), and grouped-query attention and its ends (off)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ablate.components.component import setting
from ablate.spec.backends import without_triton
from ablate.spec.cost import Cost, causal_attention, matrix, vector
from ablate.spec.machine import Machine
from ablate.spec.nodes import BuildContext
from ablate.spec.ranges import Count, CountOrNone, checked
from ablate.spec.run import Spec

if TYPE_CHECKING:
    from torch import nn

Backend = Literal["auto", "reference", "library", "cudnn", "triton"]
HeadsBackend = Literal["auto", "reference", "library", "cudnn"]


@checked("attention")
@dataclass(frozen=True, kw_only=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (arXiv:2412.19437, eqs. 1-11): one latent and one rotated key are cached."""

    kind: Literal["mla"] = "mla"
    n_heads: Count
    q_lora_rank: CountOrNone  # 0: queries are not compressed (DeepSeek-V2-Lite)
    kv_lora_rank: Count
    qk_nope_head_dim: Count
    qk_rope_head_dim: Count
    v_head_dim: Count
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        _even(self, "qk_rope_head_dim")

    @property
    def rope_dim(self) -> int:
        return self.qk_rope_head_dim

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def obstacles(self, machine: Machine, dtype: str) -> Mapping[str, str]:
        """`library` is torch's choice among its kernels; `cudnn` is cuDNN's behind one launch that joins the heads."""
        kernels = {"triton": without_triton(machine)}
        return {"cudnn": without_cudnn(machine, dtype), "library": "", "reference": "", **kernels}

    def build(self, context: BuildContext) -> nn.Module:
        from ablate.components.mla.module import LatentAttention as Module

        return Module(
            context,
            n_heads=self.n_heads,
            q_lora_rank=self.q_lora_rank,
            kv_lora_rank=self.kv_lora_rank,
            qk_nope_head_dim=self.qk_nope_head_dim,
            qk_rope_head_dim=self.qk_rope_head_dim,
            v_head_dim=self.v_head_dim,
            backend=self.backend,
        )

    def cost(self, *, dim: int, sequence_length: int) -> Cost:
        heads, rank = self.n_heads, self.kv_lora_rank
        if self.q_lora_rank:
            query = matrix(dim, self.q_lora_rank) + vector(self.q_lora_rank)
            query = query + matrix(self.q_lora_rank, heads * self.qk_head_dim)
        else:
            query = matrix(dim, heads * self.qk_head_dim)
        down = matrix(dim, rank + self.qk_rope_head_dim) + vector(rank)
        up = matrix(rank, heads * (self.qk_nope_head_dim + self.v_head_dim))
        products = causal_attention(
            sequence_length=sequence_length, n_heads=heads, qk_dim=self.qk_head_dim, v_dim=self.v_head_dim
        )
        cache = Cost(kv_cache_elements=rank + self.qk_rope_head_dim)
        return query + down + up + matrix(heads * self.v_head_dim, dim) + products + cache


@checked("attention")
@dataclass(frozen=True, kw_only=True, slots=True)
class GroupedQueryAttention:
    """Grouped-query attention (arXiv:2305.13245) with rotary keys and queries, as in Llama 3.

    `n_kv_heads` equal to `n_heads` is multi-head attention, 1 is multi-query attention.
    """

    kind: Literal["gqa"] = "gqa"
    n_heads: Count
    n_kv_heads: Count
    head_dim: Count
    backend: HeadsBackend = "auto"

    def __post_init__(self) -> None:
        _even(self, "head_dim")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"attention.n_kv_heads is {self.n_kv_heads}; it must divide attention.n_heads, which is {self.n_heads}"
            )

    @property
    def rope_dim(self) -> int:
        return self.head_dim

    def obstacles(self, machine: Machine, dtype: str) -> Mapping[str, str]:
        return {"cudnn": without_cudnn(machine, dtype), "library": "", "reference": ""}

    def build(self, context: BuildContext) -> nn.Module:
        from ablate.components.mla.module import GroupedQueryAttention as Module

        return Module(
            context,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            head_dim=self.head_dim,
            backend=self.backend,
        )

    def cost(self, *, dim: int, sequence_length: int) -> Cost:
        width, kv_width = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        products = causal_attention(
            sequence_length=sequence_length, n_heads=self.n_heads, qk_dim=self.head_dim, v_dim=self.head_dim
        )
        weights = matrix(dim, width) + matrix(dim, kv_width) * 2 + matrix(width, dim)
        return weights + products + Cost(kv_cache_elements=2 * kv_width)


def without_cudnn(machine: Machine, dtype: str) -> str:
    """Why cuDNN's attention cannot be used; "" if it can."""
    if machine.kind != "cuda" or dtype != "bfloat16":
        return "cuDNN's attention needs a CUDA device and trainer.dtype bfloat16"
    return ""


def on(spec: Spec) -> Spec:
    return replace(spec, model=replace(spec.model, attention=setting(spec, "mla")))


def off(spec: Spec, alternative: str) -> Spec:
    base = spec.preset.model.attention
    assert isinstance(base, GroupedQueryAttention)
    n_kv_heads = {"gqa": base.n_kv_heads, "mha": base.n_heads, "mqa": 1}[alternative]
    return replace(spec, model=replace(spec.model, attention=replace(base, n_kv_heads=n_kv_heads)))


def _even(node: Any, name: str) -> None:
    if getattr(node, name) % 2:
        raise ValueError(f"attention.{name} is {getattr(node, name)}; rotation works on pairs, so it must be even")
