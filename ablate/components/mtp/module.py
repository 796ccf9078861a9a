"""Objective modules: what is trained beside the main head's next-token loss."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ablate.model.block import Rotation
from ablate.model.turns import Steps, at_once, steps_of
from ablate.spec.nodes import BuildContext


@dataclass(frozen=True, slots=True)
class FutureTokens:
    """Predictions beyond the next token. `hidden_BTD[k - 1]`, (B, T - k, D), predicts the token k + 1 ahead."""

    hidden_BTD: list[Tensor] = field(default_factory=list)
    routing: list[Any] = field(default_factory=list)


class NextToken(nn.Module):
    """Nothing beside the main head."""

    def forward(self, trunk_BTD: Tensor, embedded_BTD: Tensor, rotation: Rotation) -> FutureTokens:
        return FutureTokens()


class MultiTokenModule(nn.Module):
    """One block and the norm before the shared head; sequential ones also join the next token's embedding."""

    def __init__(self, context: BuildContext, index: int, *, joins_embedding: bool) -> None:
        super().__init__()
        if joins_embedding:
            self.embedding_norm = context.norm(context.dim)
            self.hidden_norm = context.norm(context.dim)
            self.projection = context.linear.linear(2 * context.dim, context.dim)
        self.block = context.further_block(index)
        self.norm = context.norm(context.dim)

    def join(self, hidden_BTD: Tensor, embedded_BTD: Tensor) -> Tensor:
        """M_k [norm(embedding); norm(hidden)], eq. 21, in the order of DeepSeek's published weights."""
        return self.projection(torch.cat([self.embedding_norm(embedded_BTD), self.hidden_norm(hidden_BTD)], dim=-1))


class MultiToken(nn.Module):
    """What sequential and parallel modules share. The embedding and the head are the main model's."""

    joins_embedding: bool

    def __init__(self, context: BuildContext, depth: int) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(
            MultiTokenModule(context, index, joins_embedding=self.joins_embedding) for index in range(depth)
        )

    def forward(self, trunk_BTD: Tensor, embedded_BTD: Tensor, rotation: Rotation) -> FutureTokens:
        return at_once(self.steps(trunk_BTD, embedded_BTD, rotation))

    @property
    def sends(self) -> bool:
        """Whether the experts of its blocks are divided over ranks."""
        return any(module.block.sends for module in self.layers)

    @abstractmethod
    def steps(self, trunk_BTD: Tensor, embedded_BTD: Tensor, rotation: Rotation) -> Steps[FutureTokens]:
        """The modules' pass, left wherever rows are on their way to experts or back."""

    def loss(self, future: FutureTokens, targets_BT: Tensor, head: Any) -> Tensor:
        """Mean over depths of the cross-entropy k + 1 tokens ahead (eqs. 24-25). `targets_BT`: the next tokens.

        `head`: the main model's, with its `cross_entropy`.
        """
        losses = [head.cross_entropy(hidden, targets_BT[:, k:]) for k, hidden in enumerate(future.hidden_BTD, start=1)]
        return torch.stack(losses).mean()


class SequentialModules(MultiToken):
    """arXiv:2412.19437, eqs. 21-23: module k turns h^{k-1}_i and the embedding of t_{i+k} into h^k_i.

    Positions without a token k + 1 ahead are left out, so they reach neither loss, router nor FLOP count.
    `embedded_BTD` embeds the inputs t_0 .. t_{T-1}; h^k at i < T - k predicts t_{i+k+1}, the target at i + k.
    """

    joins_embedding = True

    def steps(self, trunk_BTD: Tensor, embedded_BTD: Tensor, rotation: Rotation) -> Steps[FutureTokens]:
        future, hidden = FutureTokens(), trunk_BTD
        for k, module in enumerate(self.layers, start=1):
            length = trunk_BTD.shape[1] - k
            joined = module.join(hidden[:, :length], embedded_BTD[:, k:])
            hidden, routing = yield from steps_of(module.block, joined, rotation.positions(0, length))
            future.hidden_BTD.append(module.norm(hidden))
            future.routing.append(routing)
        return future


class ParallelHeads(MultiToken):
    """arXiv:2404.19737: one block on the trunk for each further token, none seeing another's result."""

    joins_embedding = False

    def steps(self, trunk_BTD: Tensor, embedded_BTD: Tensor, rotation: Rotation) -> Steps[FutureTokens]:
        future = FutureTokens()
        for k, module in enumerate(self.layers, start=1):
            length = trunk_BTD.shape[1] - k
            hidden, routing = yield from steps_of(module.block, trunk_BTD[:, :length], rotation.positions(0, length))
            future.hidden_BTD.append(module.norm(hidden))
            future.routing.append(routing)
        return future
