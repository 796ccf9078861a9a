"""The values that describe a run: slots filled by nodes, and what surrounds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, get_args, get_type_hints

from ablate.backends import AUTO, Backend, settle, without_triton
from ablate.cost import Cost, ModelCost, matrix, vector
from ablate.machine import Machine

if TYPE_CHECKING:
    from torch import nn

SCHEMA_VERSION = 1
FORBID_UNKNOWN = {"extra": "forbid"}  # read by pydantic at the file edge


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildContext:
    """What a node needs to know of the model around it to build its module."""

    dim: int
    norm_eps: float
    norm_backend: str
    linear: LinearNode

    def norm(self, dim: int) -> Any:
        """The root-mean-square norm of `dim` channels."""
        from ablate.block import RMSNorm

        return RMSNorm(dim, self.norm_eps, self.norm_backend)

    def input_norm(self, dim: int) -> Any:
        """The norm before linear maps, which these may read in a form of their own (`ablate.block.plain`)."""
        return self.linear.norm(dim, self.norm_eps, self.norm_backend)


class AttentionNode(Protocol):
    @property
    def kind(self) -> str: ...

    @property
    def rope_dim(self) -> int:
        """Channels of a head that are rotated."""

    def build(self, context: BuildContext) -> nn.Module: ...
    def cost(self, *, dim: int, sequence_length: int) -> Cost: ...


class FeedForwardNode(Protocol):
    @property
    def kind(self) -> str: ...

    def build(self, context: BuildContext, balance: BalanceNode | None) -> nn.Module: ...
    def cost(self, *, dim: int) -> Cost: ...


class BalanceNode(Protocol):
    """How the experts' loads are kept even. Present exactly when the feed-forward routes."""

    @property
    def kind(self) -> str: ...

    @property
    def selection_bias(self) -> bool:
        """Whether the router carries a bias that takes part in selection only."""

    def loss(self, routing: Any, accumulated: Any) -> Any:
        """Term of the training loss; `accumulated`: loads of the optimizer step's earlier micro-batches, by router."""

    def callbacks(self) -> list[Any]: ...


class ObjectiveNode(Protocol):
    @property
    def kind(self) -> str: ...

    def build(self, model: ModelSpec, context: BuildContext) -> nn.Module: ...
    def cost(self, model: ModelSpec, sequence_length: int) -> tuple[int, float]:
        """Parameters beyond the main model, and their forward FLOPs per token of a sequence."""

    def check_length(self, sequence_length: int) -> None:
        """ValueError if the objective cannot be trained on sequences of this length."""


class LinearNode(Protocol):
    """Makes every linear map but the embedding, the output head and the router's gate."""

    @property
    def kind(self) -> str: ...

    def linear(self, in_features: int, out_features: int) -> Any:
        """A module x (..., I) -> (..., O); its `feed_forward` may be it, SwiGLU and a second map in one."""

    def norm(self, dim: int, eps: float, backend: str) -> Any:
        """The norm whose output its linear maps read, on a backend of norms."""

    def grouped(self, n_groups: int, in_features: int, out_features: int) -> Any:
        """A module (rows sorted by group, ends of the groups) -> rows; its `experts` may be routed experts whole."""

    def precision(self, dtype: str, device: str) -> Any:
        """The Lightning Precision plugin of a run on `device` ("cpu" or "cuda")."""

    def callbacks(self) -> list[Any]: ...
    def speed_evidence(self) -> str:
        """Whether seconds of these products are "measured" or those of an emulation ("emulated")."""


class TextNode(Protocol):
    """Where training text comes from."""

    @property
    def kind(self) -> str: ...

    def datamodule(self, run: RunSpec, corpus: Any) -> Any:
        """The LightningDataModule of a run on a corpus."""

    @property
    def wants_logits(self) -> bool:
        """Whether its loss reads the main head's logits, which a head may otherwise never have whole."""

    def loss(self, cross_entropy: Any, logits_BTC: Any, batch: Any) -> Any:
        """The main head's term of the training loss, from its next-token cross-entropy.

        `logits_BTC`: the main head's, float32, where the node wants them; else None.
        """

    def charged_flops_per_token(self, bytes_per_token: float) -> float:
        """FLOPs spent elsewhere (by a teacher) for each training token, as far as they are charged."""

    def facts(self) -> dict[str, Any]:
        """What a report must say of text that is not the corpus's own; empty for the corpus."""


SLOTS = ("attention", "feed_forward", "first_feed_forward", "balance", "objective", "linear")


def _at_least(node: Any, path: str, least: int, *names: str) -> None:
    for name in names:
        value = getattr(node, name)
        if not value >= least:  # also for what is not a number
            raise ValueError(f"{path}.{name} is {value}; it must be at least {least}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Init:
    """Initial weights: normal, of fixed deviation `scale` or of deviation scale / sqrt(fan-in)."""

    scheme: Literal["normal", "fan-in"]
    scale: float

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN

    def __post_init__(self) -> None:
        _at_least(self, "init", 0, "scale")

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
        _at_least(self, "model", 1, "dim", "n_layers", "vocab_size", "rope_theta")
        _at_least(self, "model", 0, "n_first_layers", "norm_eps")
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

    def settled(self, machine: Machine, dtype: str) -> ModelSpec:
        """The same model with every backend named that runs it on a machine in a run's dtype.

        ValueError if one that was asked for cannot run there.
        """
        obstacles = {"library": "", "triton": without_triton(machine)}
        changes: dict[str, Any] = {
            f"{name}_backend": settle(name, getattr(self, f"{name}_backend"), machine, obstacles)
            for name in ("norm", "head")
        }
        for slot in SLOTS:
            node = getattr(self, slot)
            if hasattr(node, "settled"):
                changes[slot] = node.settled(machine, dtype)
        return replace(self, **changes)

    def portable(self) -> ModelSpec:
        """The same model on backends that run on any machine, whatever it was trained with: weights fit both."""
        changes: dict[str, Any] = {"norm_backend": AUTO, "head_backend": AUTO}
        for slot in SLOTS:
            node = getattr(self, slot)
            if hasattr(node, "settled"):
                changes[slot] = replace(node, backend=AUTO)
        return replace(self, **changes).settled(Machine(kind="cpu"), "float32")

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


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSpec:
    """The corpus, and what of it is trained on."""

    source: str  # "stdlib", a path, or "hf:NAME"
    text: TextNode
    max_bytes: int | None = None

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """What calibration does to a run: a switch without effect, FLOPs without use, targets that are not learned."""

    placebo: bool = False
    extra_flops_share: float = 0.0  # of the model's own training FLOPs
    masked_target_share: float = 0.0  # of the main head's targets

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerSpec:
    """Optimisation and evaluation: equal for all variants of a study but for the learning rate, if it is tuned."""

    sequence_length: int
    batch_size: int  # sequences per optimizer step
    micro_batch_size: int  # sequences per forward pass; divides batch_size
    learning_rate: float
    warmup_share: float  # of the steps
    decay_share: float  # of the steps, at the end, 1 - sqrt
    weight_decay: float
    gradient_clip: float
    dtype: Literal["float32", "bfloat16"]
    n_evaluations: int  # points of the held-out curve, the last one at the end
    n_held_out_windows: int  # of sequence_length tokens
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    control: Control = Control()

    def __post_init__(self) -> None:
        counts = ("sequence_length", "batch_size", "micro_batch_size", "n_evaluations", "n_held_out_windows")
        _at_least(self, "trainer", 1, *counts)
        _at_least(self, "trainer", 0, "learning_rate", "weight_decay", "gradient_clip", "warmup_share", "decay_share")
        if self.warmup_share + self.decay_share > 1:
            raise ValueError(
                f"trainer.warmup_share is {self.warmup_share} and trainer.decay_share {self.decay_share}; "
                "they are shares of the steps and sum to at most 1"
            )

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.sequence_length


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """Sizes that all variants share, and each component's own; `settings` holds the node a component turns on."""

    name: str
    title: str
    model: ModelSpec
    data: DataSpec
    trainer: TrainerSpec
    n_tokens: int  # default budget of the full variant
    n_seeds: int
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """What `on` and `off` map to itself: one variant of a preset."""

    preset: Preset
    model: ModelSpec
    data: DataSpec
    trainer: TrainerSpec

    def settled(self, machine: Machine) -> Spec:
        """The same variant with the backends that run it on a machine."""
        return replace(self, model=self.model.settled(machine, self.trainer.dtype))


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """One run, fully resolved: every number that its result depends on. Its hash is the run's name."""

    model: ModelSpec
    text: TextNode
    trainer: TrainerSpec
    corpus_hash: str
    seed: int
    n_steps: int
    schema_version: int = SCHEMA_VERSION

    @property
    def n_tokens(self) -> int:
        return self.n_steps * self.trainer.tokens_per_step
