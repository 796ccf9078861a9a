"""Published models as groups of layers: `account --model` prices them and nothing here trains them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ablate.components.codec import decode_spec
from ablate.spec.cost import Cost, ModelCost, matrix, vector
from ablate.spec.decoding import Slot
from ablate.spec.nodes import AttentionNode, FeedForwardNode
from ablate.spec.ranges import Count, Depth, checked


@checked("layers")
@dataclass(frozen=True, kw_only=True, slots=True)
class Layers:
    """`count` equal layers. Their order among other groups changes no figure, so interleaved layers are two groups.

    What is beside the nodes needs an attention with `n_heads`, `n_kv_heads` and `head_dim` (kind gqa): `qk_norm` norms
    queries and keys by head (Qwen3) or all heads together (OLMoE); `qkv_bias` adds to their projections and that of
    values (Qwen2.5); under a `sliding_window` a token sees itself and the window - 1 tokens before (Gemma).
    """

    count: Depth
    attention: Annotated[AttentionNode, Slot("attention")]
    feed_forward: Annotated[FeedForwardNode, Slot("feed_forward")]
    n_norms: Literal[2, 4] = 2  # on the residual stream; 4: behind attention and feed-forward too (Gemma)
    qk_norm: Literal["none", "head", "all"] = "none"
    qkv_bias: bool = False
    sliding_window: Count | None = None

    def __post_init__(self) -> None:
        if (self.qk_norm != "none" or self.qkv_bias) and self.attention.kind != "gqa":
            raise ValueError(f"layers.qk_norm and layers.qkv_bias belong to kind gqa; it is {self.attention.kind}")

    def cost(self, dim: int, sequence_length: int) -> Cost:
        """Of all layers of the group."""
        attention = self._windowed(self.attention.cost(dim=dim, sequence_length=sequence_length), sequence_length)
        layer = attention + self.feed_forward.cost(dim=dim) + vector(dim) * self.n_norms
        node: Any = self.attention
        if self.qk_norm != "none":
            layer = layer + vector(node.head_dim) * (2 if self.qk_norm == "head" else node.n_heads + node.n_kv_heads)
        if self.qkv_bias:
            layer = layer + vector(node.head_dim) * (node.n_heads + 2 * node.n_kv_heads)
        return layer * self.count

    def _windowed(self, cost: Cost, length: int) -> Cost:
        """With the pairs of tokens that a window leaves, and a cache of no more tokens than it: both per token."""
        window = min(self.sliding_window or length, length)
        pairs = window * (window + 1) // 2 + (length - window) * window
        saved = cost.attention_flops - round(cost.attention_flops * 2 * pairs / (length * (length + 1)))
        unkept = cost.kv_cache_elements - round(cost.kv_cache_elements * window / length)
        return cost + Cost(attention_flops=-saved, kv_cache_elements=-unkept)


@checked("model")
@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """Embedding, groups of layers, a last norm and the head, which is the embedding's own matrix where it is tied."""

    dim: Count
    vocab_size: Count
    layers: tuple[Layers, ...]
    tied_embedding: bool = False

    def cost(self, sequence_length: int) -> ModelCost:
        """Closed form of everything; attention FLOPs and the cache are per token of sequences of this length."""
        head, embedding = matrix(self.vocab_size, self.dim), self.vocab_size * self.dim
        main = Cost(parameters=embedding, activated=embedding) + vector(self.dim)
        main = main + (Cost(weight_flops=head.weight_flops) if self.tied_embedding else head)
        for group in self.layers:
            main = main + group.cost(self.dim, sequence_length)
        return ModelCost(
            main=main,
            embedding_parameters=embedding,
            extra_parameters=0,
            extra_forward_flops_per_token=0.0,
            sequence_length=sequence_length,
        )


def decode_architecture(data: Mapping[str, Any]) -> Architecture:
    """From plain data; ValueError with the path of everything that is wrong."""
    return decode_spec(Architecture, dict(data), "")
