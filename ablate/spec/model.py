"""A model as a list of slots: its nodes, its sizes, its price, and the backends that run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from ablate.errors import check_at_least
from ablate.spec.backends import AUTO, Backend, resolve_backend, without_triton
from ablate.spec.cost import Cost, ModelCost, matrix, vector
from ablate.spec.decoding import FORBID_UNKNOWN
from ablate.spec.machine import Machine
from ablate.spec.nodes import SLOTS, AttentionNode, BalanceNode, FeedForwardNode, LinearNode, ObjectiveNode


@dataclass(frozen=True, kw_only=True, slots=True)
class Init:
    """Initial weights: normal, of fixed deviation `scale` or of deviation scale / sqrt(fan-in)."""

    scheme: Literal["normal", "fan-in"]
    scale: float

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN

    def __post_init__(self) -> None:
        check_at_least(self, "init", 0, "scale")

    def deviation(self, fan_in: int) -> float:
        return self.scale if self.scheme == "normal" else self.scale / fan_in**0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """A transformer as a list of slots. The first `n_first_layers` have a dense feed-forward in every variant."""

    dim: int
    n_layers: int
    vocab_size: int
    n_first_layers: int
    first_feed_forward: FeedForwardNode
    attention: AttentionNode
    feed_forward: FeedForwardNode
    balance: BalanceNode | None
    objective: ObjectiveNode
    linear: LinearNode
    rope_theta: float
    norm_eps: float
    init: Init
    norm_backend: Backend = "auto"  # of every norm: library is torch's
    head_backend: Backend = "auto"  # of the heads with their cross-entropy: library has the logits whole

    def __post_init__(self) -> None:
        check_at_least(self, "model", 1, "dim", "n_layers", "vocab_size", "rope_theta")
        check_at_least(self, "model", 0, "n_first_layers", "norm_eps")
        if self.n_first_layers > self.n_layers:
            raise ValueError(
                f"model.n_first_layers is {self.n_first_layers}; the model has {self.n_layers} layers (model.n_layers)"
            )

    def with_backends(self, asked: Mapping[str, str]) -> ModelSpec:
        """The same model with backends by slot (`norm` and `head` too), where the slot's node has the one named."""
        changes: dict[str, Any] = {}
        for slot, name in asked.items():
            node = getattr(self, slot, self)
            field_name = f"{slot}_backend" if node is self else "backend"
            if name in get_args(get_type_hints(type(node)).get(field_name)):
                changes[field_name if node is self else slot] = name if node is self else replace(node, backend=name)
        return replace(self, **changes)

    def for_machine(self, machine: Machine, dtype: str) -> ModelSpec:
        """The same model with every backend named that runs it on a machine in a run's dtype.

        ValueError if one that was asked for cannot run there.
        """
        obstacles = {"library": "", "triton": without_triton(machine)}
        changes: dict[str, Any] = {
            f"{name}_backend": resolve_backend(name, getattr(self, f"{name}_backend"), machine, obstacles)
            for name in ("norm", "head")
        }
        for slot in SLOTS:
            node = getattr(self, slot)
            if hasattr(node, "for_machine"):
                changes[slot] = node.for_machine(machine, dtype)
        return replace(self, **changes)

    def portable(self) -> ModelSpec:
        """The same model on backends that run on any machine, whatever it was trained with: weights fit both."""
        changes: dict[str, Any] = {"norm_backend": AUTO, "head_backend": AUTO}
        for slot in SLOTS:
            node = getattr(self, slot)
            if hasattr(node, "for_machine"):
                changes[slot] = replace(node, backend=AUTO)
        return replace(self, **changes).for_machine(Machine(kind="cpu"), "float32")

    @property
    def backends(self) -> dict[str, str]:
        """Slot -> the backend that runs it; "reference" is what has no choice."""
        named = {slot: getattr(getattr(self, slot), "backend", "") for slot in SLOTS}
        return {slot: name for slot, name in named.items() if name} | {
            "norm": self.norm_backend,
            "head": self.head_backend,
        }

    def layer_feed_forward(self, layer: int) -> tuple[FeedForwardNode, BalanceNode | None]:
        """The node of a layer's feed-forward with its balance; modules behind the last layer continue it."""
        if layer < self.n_first_layers:
            return self.first_feed_forward, None
        return self.feed_forward, self.balance

    def block_cost(self, layer: int, sequence_length: int) -> Cost:
        """Attention, feed-forward and the two norms before them."""
        feed_forward, _ = self.layer_feed_forward(layer)
        attention = self.attention.cost(dim=self.dim, sequence_length=sequence_length)
        return attention + feed_forward.cost(dim=self.dim) + vector(self.dim) * 2

    def cost(self, sequence_length: int) -> ModelCost:
        """Closed form of everything; `sequence_length` enters through causal attention alone."""
        embedding = Cost(parameters=self.vocab_size * self.dim, activated=self.vocab_size * self.dim)
        main = embedding + vector(self.dim) + matrix(self.vocab_size, self.dim)
        for layer in range(self.n_layers):
            main = main + self.block_cost(layer, sequence_length)
        parameters, flops = self.objective.cost(self, sequence_length)
        return ModelCost(
            main=main,
            extra_parameters=parameters,
            extra_forward_flops_per_token=flops,
            sequence_length=sequence_length,
        )
