"""What fills each slot of a model, as protocols: every node knows its numbers, builds its module and prices itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ablate.spec.cost import Cost

if TYPE_CHECKING:
    from torch import nn

    from ablate.spec.model import ModelSpec

SLOTS = ("attention", "feed_forward", "first_feed_forward", "balance", "objective", "linear")


class BuildContext(Protocol):
    """What a node needs to know of the model around it to build its module."""

    @property
    def dim(self) -> int: ...

    @property
    def linear(self) -> LinearNode: ...

    def norm(self, dim: int) -> Any:
        """The root-mean-square norm of `dim` channels."""

    def input_norm(self, dim: int) -> Any:
        """The norm before linear maps, which these may read in a form of their own."""


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
