"""What every transformer here is made of: rotary tables and the pre-norm residual block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ablate.model.recompute import recomputed
from ablate.model.turns import Steps, at_once, steps_of
from ablate.spec.model import ModelSpec
from ablate.spec.nodes import LinearNode


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotary position table (arXiv:2104.09864) for a run of positions; float32 or wider, each (T, rope_dim / 2)."""

    cos_TP: Tensor
    sin_TP: Tensor

    def rotate(self, x_BTHR: Tensor) -> Tensor:
        """Rotate the channel pairs (i, i + R / 2) of every head, rounded once. (B, T, H, R) -> the same."""
        cos, sin = self.cos_TP[:, None], self.sin_TP[:, None]
        first, second = x_BTHR.to(torch.promote_types(x_BTHR.dtype, cos.dtype)).chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_BTHR.dtype)

    def positions(self, start: int, length: int) -> Rotation:
        """The table of `length` positions from `start` on."""
        return Rotation(self.cos_TP[start : start + length], self.sin_TP[start : start + length])


def rotation_table(rope_dim: int, length: int, theta: float, device: torch.device | str = "cpu") -> Rotation:
    """Angles of positions 0 .. length - 1, computed in float64."""
    frequency_P = theta ** (-torch.arange(0, rope_dim, 2, dtype=torch.float64, device=device) / rope_dim)
    angle_TP = torch.arange(length, dtype=torch.float64, device=device)[:, None] * frequency_P
    dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
    return Rotation(angle_TP.cos().to(dtype), angle_TP.sin().to(dtype))


@dataclass(frozen=True, slots=True)
class ModelContext:
    """What a node is told of the model around it: `spec.nodes.BuildContext` with the modules of this package."""

    model: ModelSpec

    @property
    def dim(self) -> int:
        return self.model.dim

    @property
    def linear(self) -> LinearNode:
        return self.model.linear

    def norm(self, dim: int) -> Any:
        """The norm of `dim` channels."""
        return self.model.norm.build(dim)

    def input_norm(self, dim: int) -> Any:
        """The norm before linear maps, which these may read in a form of their own (`modules.unquantised`)."""
        return self.linear.norm(dim, self.model.norm)

    def further_block(self, index: int) -> Block:
        """A block that continues the trunk: the one of index 0 comes behind its last layer."""
        return Block(self.model, self.model.n_layers + index)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)). Returns the routing of its experts, if it has any.

    `recomputed`: whether a training pass keeps the input alone and is made again for the backward pass.
    """

    recomputed = False

    def __init__(self, model: ModelSpec, layer: int) -> None:
        super().__init__()
        context = ModelContext(model)
        feed_forward, balance = model.layer_feed_forward(layer)
        self.attention_norm = context.input_norm(model.dim)
        self.attention: Any = model.attention.build(context)
        self.feed_forward_norm = context.input_norm(model.dim)
        self.feed_forward = feed_forward.build(context, balance)

    def forward(self, x_BTD: Tensor, rotation: Rotation) -> tuple[Tensor, Any]:
        return at_once(self.steps(x_BTD, rotation))

    @property
    def sends(self) -> bool:
        """Whether its experts are divided over ranks."""
        return getattr(self.feed_forward, "sends", False)

    def steps(self, x_BTD: Tensor, rotation: Rotation) -> Steps[tuple[Tensor, Any]]:
        """`forward`, left wherever rows are on their way to experts or back."""
        if self.recomputed and torch.is_grad_enabled():
            return (yield from recomputed(lambda x_BTD: self.through(x_BTD, rotation), x_BTD))
        return (yield from self.through(x_BTD, rotation))

    def through(self, x_BTD: Tensor, rotation: Rotation) -> Steps[tuple[Tensor, Any]]:
        """The same, of which everything is kept that its backward pass reads."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotation)
        y_BTD, routing = yield from steps_of(self.feed_forward, self.feed_forward_norm(x_BTD))
        return x_BTD + y_BTD, routing

    def decode(self, x_BTD: Tensor, rotation: Rotation, cache: Any) -> Tensor:
        """As forward, for the tokens that follow those in `cache`, which grows by them."""
        x_BTD = x_BTD + self.attention.decode(self.attention_norm(x_BTD), rotation, cache)
        y_BTD, _ = self.feed_forward(self.feed_forward_norm(x_BTD))
        return x_BTD + y_BTD


def recompute_blocks(model: nn.Module, recompute: str) -> None:
    """Let every block of a model be computed again where `recompute`, as of `TrainerSpec`, is "full"."""
    for module in model.modules():
        if isinstance(module, Block):
            module.recomputed = recompute == "full"
