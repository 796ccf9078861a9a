"""A model as a list of slots: its nodes, its sizes, its price, and the backends that run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from ablate.spec.backends import AUTO, resolve_backend
from ablate.spec.cost import Cost, ModelCost
from ablate.spec.decoding import UNWRITTEN_DEFAULT, Slot
from ablate.spec.machine import Machine
from ablate.spec.nodes import (
    MODEL_SLOTS,
    AttentionNode,
    BalanceNode,
    FeedForwardNode,
    HeadNode,
    LinearNode,
    Node,
    NormNode,
    ObjectiveNode,
)
from ablate.spec.ranges import Count, CountOrNone, Depth, Positive, Range, checked

ANYWHERE = Machine(kind="cpu")


@checked("init")
@dataclass(frozen=True, kw_only=True, slots=True)
class Init:
    """Initial weights: normal, of fixed deviation `scale` or of deviation scale / sqrt(fan-in)."""

    scheme: Literal["normal", "fan-in"]
    scale: Positive

    def deviation(self, fan_in: int) -> float:
        return self.scale if self.scheme == "normal" else self.scale / fan_in**0.5


@checked("model")
@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """A transformer as a list of slots. The first `n_first_layers` have a dense feed-forward in every variant."""

    dim: Count
    n_layers: Depth
    vocab_size: Count
    n_first_layers: CountOrNone
    first_feed_forward: Annotated[FeedForwardNode, Slot("first_feed_forward")]
    attention: Annotated[AttentionNode, Slot("attention")]
    feed_forward: Annotated[FeedForwardNode, Slot("feed_forward")]
    balance: Annotated[BalanceNode | None, Slot("balance")]
    objective: Annotated[ObjectiveNode, Slot("objective")]
    linear: Annotated[LinearNode, Slot("linear")]
    norm: Annotated[NormNode, Slot("norm")]  # of every norm
    head: Annotated[HeadNode, Slot("head")]
    rope_theta: Annotated[float, Range(at_least=1)]
    init: Init
    # Of what the blocks add to, from the embedding on; bfloat16 in runs of that dtype alone.
    residual_dtype: Literal["float32", "bfloat16"] = field(default="float32", metadata=UNWRITTEN_DEFAULT)

    def __post_init__(self) -> None:
        if self.n_first_layers > self.n_layers:
            raise ValueError(
                f"model.n_first_layers is {self.n_first_layers}; the model has {self.n_layers} layers (model.n_layers)"
            )
        if self.balance is not None and self.n_first_layers == self.n_layers:
            raise ValueError(
                f"model.n_first_layers is {self.n_first_layers}, and so is model.n_layers, so that no layer has routed "
                "experts; give fewer first layers, or leave out what routes (disable moe)"
            )

    @property
    def nodes(self) -> dict[str, Node]:
        """Slot -> its node; the slot of balance is empty where nothing routes."""
        return {slot: getattr(self, slot) for slot in MODEL_SLOTS if getattr(self, slot) is not None}

    @property
    def backends(self) -> dict[str, str]:
        """Slot -> the backend that runs it, of the slots whose node has a choice."""
        return {slot: node.backend for slot, node in self._with_a_choice().items()}

    def _with_a_choice(self) -> dict[str, Any]:
        return {slot: node for slot, node in self.nodes.items() if node.obstacles(ANYWHERE, "float32")}

    def with_backends(self, asked: Mapping[str, str]) -> ModelSpec:
        """The same model with backends by slot, where the slot's node has the one named."""
        changes = {
            slot: replace(node, backend=asked[slot])
            for slot, node in self._with_a_choice().items()
            if asked.get(slot) in (AUTO, *node.obstacles(ANYWHERE, "float32"))
        }
        return replace(self, **changes)

    def for_machine(self, machine: Machine, dtype: str) -> ModelSpec:
        """The same model with every backend named that runs it on a machine in a run's dtype.

        ValueError if one that was asked for cannot run there, or the residual stream cannot be in its dtype.
        """
        if self.residual_dtype == "bfloat16" != dtype:
            raise ValueError(
                f"model.residual_dtype is bfloat16 and trainer.dtype {dtype}; make both bfloat16, or leave it out"
            )
        changes = {
            slot: replace(node, backend=resolve_backend(slot, node.backend, machine, node.obstacles(machine, dtype)))
            for slot, node in self._with_a_choice().items()
        }
        return replace(self, **changes)

    def portable(self) -> ModelSpec:
        """The same model on backends that run on any machine, whatever it was trained with: weights fit both."""
        free: dict[str, Any] = {slot: replace(node, backend=AUTO) for slot, node in self._with_a_choice().items()}
        return replace(self, residual_dtype="float32", **free).for_machine(ANYWHERE, "float32")

    def layer_feed_forward(self, layer: int) -> tuple[FeedForwardNode, BalanceNode | None]:
        """The node of a layer's feed-forward with its balance; modules behind the last layer continue it."""
        if layer < self.n_first_layers:
            return self.first_feed_forward, None
        return self.feed_forward, self.balance

    def block_cost(self, layer: int, sequence_length: int) -> Cost:
        """Attention, feed-forward and the two norms before them."""
        feed_forward, _ = self.layer_feed_forward(layer)
        attention = self.attention.cost(dim=self.dim, sequence_length=sequence_length)
        return attention + feed_forward.cost(dim=self.dim) + self.norm.cost(self.dim) * 2

    def cost(self, sequence_length: int) -> ModelCost:
        """Closed form of everything; `sequence_length` enters through causal attention alone."""
        embedding = Cost(parameters=self.vocab_size * self.dim, activated=self.vocab_size * self.dim)
        main = embedding + self.norm.cost(self.dim) + self.head.cost(self.dim, self.vocab_size)
        for layer in range(self.n_layers):
            main = main + self.block_cost(layer, sequence_length)
        parameters, flops = self.objective.cost(self, sequence_length)
        return ModelCost(
            main=main,
            embedding_parameters=embedding.parameters,
            extra_parameters=parameters,
            extra_forward_flops_per_token=flops,
            sequence_length=sequence_length,
        )
