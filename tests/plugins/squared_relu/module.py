"""The module of the squared-ReLU feed-forward."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ablate.spec.nodes import BuildContext


class SquaredReLU(nn.Module):
    """down(relu(up x)^2)."""

    def __init__(self, hidden_dim: int, context: BuildContext) -> None:
        super().__init__()
        self.up = context.linear.linear(context.dim, hidden_dim)
        self.down = context.linear.linear(hidden_dim, context.dim)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, None]:
        return self.down(F.relu(self.up(x_BTD)).square()), None
