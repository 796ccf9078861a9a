"""What one rank computes for one micro-batch: products with their shapes, attention, traffic; exact, from the nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ablate.components.fp8.spec import Fp8Linear
from ablate.components.mla.spec import GroupedQueryAttention, LatentAttention
from ablate.components.moe.spec import RoutedExperts, SwiGLU
from ablate.components.mtp.spec import MultiToken
from ablate.presets.architecture import Architecture
from ablate.spec.cost import BF16_BYTES, Cost
from ablate.spec.model import ModelSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """rows x inner times inner x outer, for each of `groups` matrices; `rows` are those of all groups together.

    `linear`: one of the model's linear maps, in the precision of its linear slot; the others stay BF16. `recomputed`:
    done again in the backward pass under selective recomputation. `new_input`: its input is quantised for it.
    """

    name: str
    rows: float
    inner: int
    outer: int
    groups: int = 1
    linear: bool = True
    recomputed: bool = False
    new_input: bool = True

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.inner * self.outer


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """The two products of causal attention over sequences of `length` tokens: forward FLOPs of a rank's heads."""

    flops: float
    length: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Routed:
    """Tokens that a rank sends to the experts and gets back, `copies` experts each, in groups that lie on nodes."""

    tokens: float
    dim: int
    n_experts: int
    copies: int
    n_groups: int
    n_limited_groups: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A part of a stage: forward work of one micro-batch, its parameters and what it keeps for the backward pass.

    Bytes of elementwise traffic are of BF16 activations. `kept_bytes` are those that nothing can be spared of, and
    `recomputable_bytes` those that selective recomputation does not keep. `collectives`: all-gathers and
    reduce-scatters of the activations among tensor ranks in a forward pass.
    """

    products: tuple[Product, ...] = ()
    attention: tuple[Attention, ...] = ()
    routed: tuple[Routed, ...] = ()
    elementwise_bytes: float = 0.0
    recomputed_bytes: float = 0.0  # of elementwise_bytes
    kept_bytes: float = 0.0
    recomputable_bytes: float = 0.0
    shared_parameters: int = 0  # on this rank, the same on every data rank
    expert_parameters: int = 0  # on this rank, the same on every expert group
    collectives: int = 0
    n_blocks: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(**{name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What of a layer one rank has: `tokens` of a micro-batch, one of `tensor` slices, one of `expert` groups."""

    tokens: int
    sequence_length: int
    tensor: int
    expert: int
    low_precision: bool  # linear maps multiply FP8 numbers

    @property
    def own_tokens(self) -> float:
        """Tokens of a rank where the sequence is split among tensor ranks."""
        return self.tokens / self.tensor

    def shortened(self, positions: int) -> Share:
        """The same sequences without their last positions."""
        length = max(1, self.sequence_length - positions)
        return replace(self, tokens=self.tokens // self.sequence_length * length, sequence_length=length)

    @property
    def stored_bytes(self) -> float:
        """Of one number of a linear map's input, kept for its weight gradient."""
        return 1.0 if self.low_precision else float(BF16_BYTES)


def attention_work(node: Any, dim: int, share: Share) -> Work:
    """Attention with the norm before it and the residual sum behind."""
    cost: Cost = node.cost(dim=dim, sequence_length=share.sequence_length)
    if isinstance(node, LatentAttention):
        products, passed, recomputable = _latent(node, dim, share)
    elif isinstance(node, GroupedQueryAttention):
        products, passed, recomputable = _grouped_query(node, dim, share)
    else:  # a node of another package: one product of its weights' FLOPs
        products = (_product("attention", share.tokens, dim, _whole_width(cost, dim, share)),)
        passed, recomputable = 2 * dim / share.tensor, 0.0
    core = Attention(flops=cost.attention_flops * share.tokens / share.tensor, length=share.sequence_length)
    result = products[-1].inner  # numbers of a token that attention hands to its last product
    return Work(
        products=products,
        attention=(core,),
        elementwise_bytes=_norm_bytes(dim, share) + 2 * passed * BF16_BYTES * share.tokens,
        recomputed_bytes=_norm_bytes(dim, share) / 2,
        kept_bytes=share.own_tokens * dim * BF16_BYTES + share.tokens * result * max(1.5, share.stored_bytes),
        recomputable_bytes=(recomputable * share.tokens + share.own_tokens * dim) * BF16_BYTES,
        shared_parameters=_parameters(cost, products) + dim,
        collectives=2 if share.tensor > 1 else 0,
    )


def _latent(node: LatentAttention, dim: int, share: Share) -> tuple[tuple[Product, ...], float, float]:
    """Products; numbers of a token that rotation and joining the heads read; numbers that recomputation spares."""
    n, heads = share.tokens, -(-node.n_heads // share.tensor)
    keys = heads * (node.qk_nope_head_dim + node.v_head_dim)
    queries = heads * node.qk_head_dim
    latent = node.kv_lora_rank + node.qk_rope_head_dim
    products = [_product("latents", n, dim, node.q_lora_rank + latent if node.q_lora_rank else latent)]
    if node.q_lora_rank:
        products.append(_product("queries", n, node.q_lora_rank, queries, recomputed=True))
    else:
        products.append(_product("queries", n, dim, queries, new_input=False))
    products.append(_product("keys and values", n, node.kv_lora_rank, keys, recomputed=True))
    products.append(_product("output", n, heads * node.v_head_dim, dim))
    return tuple(products), 2 * queries + keys + node.q_lora_rank + latent, 2 * queries + keys


def _grouped_query(node: GroupedQueryAttention, dim: int, share: Share) -> tuple[tuple[Product, ...], float, float]:
    heads, kv_heads = -(-node.n_heads // share.tensor), -(-node.n_kv_heads // share.tensor)
    width = (heads + 2 * kv_heads) * node.head_dim
    products = (
        _product("queries, keys and values", share.tokens, dim, width),
        _product("output", share.tokens, heads * node.head_dim, dim),
    )
    return products, width, 0.0


def feed_forward_work(node: Any, dim: int, share: Share) -> Work:
    """The feed-forward with the norm before it and the residual sum behind."""
    cost: Cost = node.cost(dim=dim)
    norms = _norm_bytes(dim, share)
    kept = share.own_tokens * dim * (BF16_BYTES + share.stored_bytes)
    if isinstance(node, RoutedExperts):
        return _routed_work(node, dim, share, norms, kept)
    hidden = node.hidden_dim if isinstance(node, SwiGLU) else -(-cost.weight_flops // (6 * dim))
    hidden = -(-hidden // share.tensor)
    products = _swiglu("feed-forward", share.tokens, dim, hidden)
    return Work(
        products=products,
        elementwise_bytes=norms + 3 * hidden * BF16_BYTES * share.tokens,
        recomputed_bytes=norms / 2 + 3 * hidden * BF16_BYTES * share.tokens,
        kept_bytes=kept + 2 * hidden * share.stored_bytes * share.tokens,
        recomputable_bytes=hidden * share.stored_bytes * share.tokens,
        shared_parameters=_parameters(cost, products) + dim,
        collectives=2 if share.tensor > 1 else 0,
    )


def _routed_work(node: RoutedExperts, dim: int, share: Share, norms: float, kept: float) -> Work:
    """Tokens split among tensor ranks, experts among expert ranks; in balance a rank gets as many as it sends."""
    tokens, copies, hidden = share.own_tokens, node.n_activated_experts, node.expert_hidden_dim
    rows, local = tokens * copies, -(-node.n_routed_experts // share.expert)
    products = [*_swiglu("experts", rows, dim, hidden, groups=local)]
    shared = node.n_shared_experts * hidden
    if shared:
        products += _swiglu("shared experts", tokens, dim, shared)
    gate = dim * node.n_routed_experts
    activated = copies * hidden + shared
    moved = 2 * 2 * copies * dim + 4 * node.n_routed_experts  # permuted there and back; the router's affinities
    return Work(
        products=tuple(products),
        routed=(
            Routed(
                tokens=tokens, dim=dim, n_experts=node.n_routed_experts, copies=copies,
                n_groups=node.n_expert_groups, n_limited_groups=node.n_limited_groups,
            ),
        ),
        elementwise_bytes=norms + (moved + 3 * activated) * BF16_BYTES * tokens,
        recomputed_bytes=norms / 2 + 3 * activated * BF16_BYTES * tokens,
        kept_bytes=kept + (copies * dim + 2 * activated) * share.stored_bytes * tokens,
        recomputable_bytes=activated * share.stored_bytes * tokens,
        shared_parameters=gate + 3 * dim * shared + dim,
        expert_parameters=3 * dim * hidden * local,
    )  # fmt: skip


def _swiglu(name: str, rows: float, dim: int, hidden: int, groups: int = 1) -> tuple[Product, ...]:
    return (
        Product(name=f"{name}: gate and up", rows=rows, inner=dim, outer=2 * hidden, groups=groups),
        Product(name=f"{name}: down", rows=rows, inner=hidden, outer=dim, groups=groups),
    )


def head_work(dim: int, vocab_size: int, share: Share) -> Work:
    """The output head and its loss."""
    vocab = -(-vocab_size // share.tensor)
    logits = share.tokens * vocab
    return Work(
        products=(Product(name="head", rows=share.tokens, inner=dim, outer=vocab, linear=False),),
        elementwise_bytes=logits * BF16_BYTES * 3.0,
        kept_bytes=(share.own_tokens * dim + logits) * BF16_BYTES,
        shared_parameters=dim * vocab + dim,
    )


def embedding_work(dim: int, vocab_size: int, share: Share) -> Work:
    return Work(
        elementwise_bytes=2.0 * share.own_tokens * dim * BF16_BYTES,
        shared_parameters=dim * -(-vocab_size // share.tensor),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model as the simulator walks it: a pair of nodes a layer, and what is around them."""

    dim: int
    vocab_size: int
    layers: tuple[tuple[Any, Any], ...]  # attention, feed-forward
    objective: Any = None
    low_precision: bool = False
    spec: ModelSpec | None = field(default=None, repr=False)

    @property
    def n_routed_experts(self) -> int:
        """Of the layer that has most; 0 without routing."""
        return max((f.n_routed_experts for _, f in self.layers if isinstance(f, RoutedExperts)), default=0)

    @property
    def n_heads(self) -> int:
        """How often the head's loss is computed: for the next token, and for each module of multi-token prediction."""
        return 1 + (self.objective.mtp_depth if isinstance(self.objective, MultiToken) else 0)

    def layer(self, index: int, share: Share) -> Work:
        attention, feed_forward = self.layers[index]
        found = attention_work(attention, self.dim, share) + feed_forward_work(feed_forward, self.dim, share)
        return found + Work(n_blocks=1)

    def end(self, share: Share) -> Work:
        """What comes behind the last layer: modules of multi-token prediction, the head and the losses."""
        if not isinstance(self.objective, MultiToken):
            return head_work(self.dim, self.vocab_size, share) + self._other_objective(share)
        found = head_work(self.dim, self.vocab_size, share)
        for depth in range(1, self.objective.mtp_depth + 1):
            found = found + self._module(share.shortened(depth))
        return found

    def _module(self, share: Share) -> Work:
        """One module of multi-token prediction, whose head is the main one's."""
        found = self.layer(len(self.layers) - 1, share)
        if self.objective.arrangement == "sequential":
            joined = Product(name="joined embeddings", rows=share.own_tokens, inner=2 * self.dim, outer=self.dim)
            found = found + Work(products=(joined,), shared_parameters=2 * self.dim**2 + 2 * self.dim)
        return found + replace(head_work(self.dim, self.vocab_size, share), shared_parameters=self.dim)

    def _other_objective(self, share: Share) -> Work:
        """Of a package of its own: one product of its FLOPs."""
        if self.spec is None:
            return Work()
        parameters, flops = self.objective.cost(self.spec, share.sequence_length)
        if not flops:
            return Work()
        outer = max(1, round(flops / (2 * self.dim)))
        products = (Product(name="objective", rows=share.own_tokens, inner=self.dim, outer=outer, linear=False),)
        return Work(products=products, shared_parameters=parameters)


def model_of(spec: ModelSpec) -> Model:
    """The model of a specification."""
    pairs = ((spec.attention, spec.layer_feed_forward(layer)[0]) for layer in range(spec.n_layers))
    return Model(
        dim=spec.dim, vocab_size=spec.vocab_size, layers=tuple(pairs), objective=spec.objective,
        low_precision=isinstance(spec.linear, Fp8Linear), spec=spec,
    )  # fmt: skip


def model_of_architecture(architecture: Architecture) -> Model:
    """A published architecture: its groups of layers one after the other. ValueError where attention has a window."""
    if any(group.sliding_window for group in architecture.layers):
        raise ValueError("attention in a sliding window is not simulated; give a model whose layers see everything")
    pairs = [(g.attention, g.feed_forward) for g in architecture.layers for _ in range(g.count)]
    return Model(dim=architecture.dim, vocab_size=architecture.vocab_size, layers=tuple(pairs))


def total(parts: Sequence[Work]) -> Work:
    found = Work()
    for part in parts:
        found = found + part
    return found


def _product(name: str, rows: float, inner: int, outer: int, **more: bool) -> Product:
    return Product(name=name, rows=rows, inner=inner, outer=outer, **more)


def _parameters(cost: Cost, products: Sequence[Product]) -> int:
    """Matrices of these products, and what of the node's parameters is no matrix: norms of its own."""
    return sum(p.inner * p.outer for p in products) + cost.parameters - cost.weight_flops // 2


def _whole_width(cost: Cost, dim: int, share: Share) -> int:
    return max(1, -(-cost.weight_flops // (2 * dim * share.tensor)))


def _norm_bytes(dim: int, share: Share) -> float:
    """A norm and a residual sum, each of which reads and writes: bytes of a rank's tokens."""
    return 8.0 * dim * BF16_BYTES * share.own_tokens
