"""The node of the first feed-forwards: two matrices with a squared ReLU between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from ablate.components.component import setting
from ablate.spec.cost import Cost, matrix
from ablate.spec.machine import Machine
from ablate.spec.nodes import BalanceNode, BuildContext
from ablate.spec.ranges import Count, checked
from ablate.spec.run import Spec

if TYPE_CHECKING:
    from torch import nn


@checked("squared-relu")
@dataclass(frozen=True, kw_only=True, slots=True)
class SquaredReLU:
    """down(relu(up x)^2) (arXiv:2109.08668); 3/2 of a SwiGLU's `hidden_dim` has its parameters and FLOPs."""

    kind: Literal["squared-relu"] = "squared-relu"
    hidden_dim: Count

    def obstacles(self, machine: Machine, dtype: str) -> Mapping[str, str]:
        return {}

    def build(self, context: BuildContext, balance: BalanceNode | None) -> nn.Module:
        from squared_relu.module import SquaredReLU as Module

        return Module(self.hidden_dim, context)

    def cost(self, *, dim: int) -> Cost:
        return matrix(dim, self.hidden_dim) * 2


def on(spec: Spec) -> Spec:
    return replace(spec, model=replace(spec.model, first_feed_forward=setting(spec, "squared-relu")))


def off(spec: Spec, alternative: str) -> Spec:
    return replace(spec, model=replace(spec.model, first_feed_forward=spec.preset.model.first_feed_forward))
