"""What fills each slot of a model, as protocols: every node knows its numbers, builds its module and prices itself.

A node is a frozen dataclass whose field `kind` names it. Where there is a choice of what runs it, it has a field
`backend` too, and `obstacles` gives every backend with the reason why it cannot run on a machine, or "" where it can,
in the order in which `auto` tries them. A node without a choice has no obstacles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ablate.schedules.action import Schedule
from ablate.spec.cost import Cost
from ablate.spec.machine import Machine
from ablate.spec.ranks import Ranks
from ablate.spec.traffic import Traffic

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

MODEL_SLOTS = (
    "attention",
    "feed_forward",
    "first_feed_forward",
    "balance",
    "objective",
    "linear",
    "norm",
    "head",
)


class Node(Protocol):
    """What the nodes of all slots have."""

    @property
    def kind(self) -> str: ...

    def obstacles(self, machine: Machine, dtype: str) -> Mapping[str, str]:
        """Backend -> why it cannot run on a machine in a run's dtype, or ""; empty where there is no choice."""


class BuildContext(Protocol):
    """What a node needs of the model around it to build its module."""

    @property
    def dim(self) -> int: ...

    @property
    def linear(self) -> LinearNode: ...

    def norm(self, dim: int) -> Any:
        """The norm of `dim` channels."""

    def input_norm(self, dim: int) -> Any:
        """The norm before linear maps, which these may read in a form of their own."""

    def further_block(self, index: int) -> Any:
        """A block that continues the trunk: the one of index 0 comes behind its last layer."""


class PricedModel(Protocol):
    """What an objective needs of a model to price its modules."""

    @property
    def dim(self) -> int: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...

    def block_cost(self, layer: int, sequence_length: int) -> Cost:
        """The price of a layer; layers behind the last are those of further blocks."""


class AttentionNode(Node, Protocol):
    @property
    def rope_dim(self) -> int:
        """Channels of a head that are rotated."""

    def build(self, context: BuildContext) -> nn.Module: ...
    def cost(self, *, dim: int, sequence_length: int) -> Cost: ...


class FeedForwardNode(Node, Protocol):
    def build(self, context: BuildContext, balance: BalanceNode | None) -> nn.Module: ...
    def cost(self, *, dim: int) -> Cost: ...


class BalanceNode(Node, Protocol):
    """How the experts' loads are kept even. Present exactly when the feed-forward routes."""

    @property
    def selection_bias(self) -> bool:
        """Whether the router carries a bias that takes part in selection only."""

    def loss(self, routing: Any, accumulated: Any) -> Any:
        """Term of the training loss; `accumulated`: loads of the optimizer step's earlier micro-batches, by router."""

    def callbacks(self) -> list[Any]: ...


class ObjectiveNode(Node, Protocol):
    """What is trained beside the main head's next token."""

    def build(self, context: BuildContext) -> nn.Module: ...

    def cost(self, model: PricedModel, sequence_length: int) -> tuple[int, float]:
        """Parameters beyond the main model, and their forward FLOPs per token of a sequence."""

    def loss_weight(self, decaying: bool) -> float:
        """Weight of the module's loss before the learning rate's decay and in it; 0 where it has none."""

    def check_length(self, sequence_length: int) -> None:
        """ValueError if the objective cannot be trained on sequences of this length."""


class LinearNode(Node, Protocol):
    """Makes every linear map but the embedding, the output head and the router's gate."""

    def linear(self, in_features: int, out_features: int) -> Any:
        """A module x (..., I) -> (..., O); its `feed_forward` may be it, SwiGLU and a second map in one."""

    def norm(self, dim: int, node: NormNode) -> Any:
        """The norm whose output its linear maps read."""

    def grouped(self, n_groups: int, in_features: int, out_features: int) -> Any:
        """A module (rows sorted by group, ends of the groups) -> rows; its `experts` may be routed experts whole."""

    def precision(self, dtype: str, device: str) -> Any:
        """The Lightning Precision plugin of a run on `device` ("cpu" or "cuda")."""

    def wire(self) -> Any:
        """How rows travel to its grouped maps on other ranks: `encode` to bytes, `decode`. None: as they are."""

    def wire_bytes(self, dim: int, dtype: str) -> int:
        """Bytes of a row of `dim` channels that travels so, in a run's dtype."""

    def shares_scales(self) -> str:
        """With what an element shares a scale in these products: nothing (""), "tiles" of rows, the whole "tensor"."""

    def callbacks(self) -> list[Any]: ...

    def speed_evidence(self) -> str:
        """Whether seconds of these products are "measured" or those of an emulation ("emulated")."""


class NormNode(Node, Protocol):
    @property
    def eps(self) -> float: ...
    @property
    def backend(self) -> str: ...

    def build(self, dim: int) -> Any: ...
    def cost(self, dim: int) -> Cost: ...


class HeadNode(Node, Protocol):
    """The output head; its module has `cross_entropy`, which may do without the logits."""

    def build(self, dim: int, vocab_size: int) -> Any: ...
    def cost(self, dim: int, vocab_size: int) -> Cost: ...


class PipelineNode(Protocol):
    """In which order pipeline ranks do forwards and backwards, and which layers lie where."""

    @property
    def kind(self) -> str: ...

    def schedule(self, n_ranks: int, n_micro_batches: int) -> Schedule:
        """The order of an optimizer step; ValueError if there is none for these numbers."""

    def layers(self, n_layers: int, n_stages: int) -> tuple[range, ...]:
        """The layers of each stage; ValueError if they cannot be laid out so."""


class TransportNode(Protocol):
    """How tokens get to experts on other ranks, and what these make of them back."""

    @property
    def kind(self) -> str: ...

    def build(self, peers: Any, n_experts: int, wire: Any) -> Any:
        """What routed experts send and receive with: `send(x_ND, weight_NA, expert_NA)`, `receive(sent, experts)`.

        peers: the ranks that a layer's experts are divided over, and the channels between them.
        """

    def traffic(self, feed_forward: Any, ranks: Ranks) -> Traffic:
        """Copies of a token that are sent in one direction."""


class OptimizerNode(Protocol):
    @property
    def kind(self) -> str: ...

    @property
    def state_bytes_per_parameter(self) -> int:
        """What it keeps of every parameter, beside the parameter and its gradient."""

    def build(self, model: nn.Module, learning_rate: float) -> Optimizer: ...
