"""Nodes of the objective slot: sequential multi-token prediction (on), next token and parallel heads (off)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ablate.components.component import setting
from ablate.spec.cost import Cost, matrix, vector
from ablate.spec.machine import Machine
from ablate.spec.nodes import BuildContext, PricedModel
from ablate.spec.ranges import Depth, NotNegative, Positive, checked
from ablate.spec.run import Spec

if TYPE_CHECKING:
    from torch import nn


@checked("objective")
@dataclass(frozen=True, kw_only=True, slots=True)
class NextToken:
    """The main head's next-token loss and nothing else."""

    kind: Literal["next-token"] = "next-token"

    def obstacles(self, machine: Machine, dtype: str) -> Mapping[str, str]:
        return {}

    def build(self, context: BuildContext) -> nn.Module:
        from ablate.components.mtp.module import NextToken as Module

        return Module()

    def loss_weight(self, decaying: bool) -> float:
        return 0.0

    def cost(self, model: PricedModel, sequence_length: int) -> tuple[int, float]:
        return 0, 0.0

    def check_length(self, sequence_length: int) -> None:
        """Any length will do."""


@checked("objective")
@dataclass(frozen=True, kw_only=True, slots=True)
class MultiToken:
    """Modules that also predict tokens further ahead; discarded when the model is deployed.

    `mtp_depth` is D, the number of further tokens. Their mean loss is weighted by `mtp_loss_weight` (lambda) up
    to the decay of the learning rate, then by `final_mtp_loss_weight` (arXiv:2412.19437, section 4.2:
    both at 10 T tokens).
    `sequential`: module k continues module k - 1 with the embedding of token t + k (eqs. 21-25).
    `parallel`: each head is one more block on the trunk alone (arXiv:2404.19737).
    """

    kind: Literal["mtp"] = "mtp"
    arrangement: Literal["sequential", "parallel"] = "sequential"
    mtp_depth: Depth
    mtp_loss_weight: Positive
    final_mtp_loss_weight: NotNegative

    def loss_weight(self, decaying: bool) -> float:
        """lambda, before the decay and in it."""
        return self.final_mtp_loss_weight if decaying else self.mtp_loss_weight

    def obstacles(self, machine: Machine, dtype: str) -> Mapping[str, str]:
        return {}

    def build(self, context: BuildContext) -> nn.Module:
        from ablate.components.mtp.module import ParallelHeads, SequentialModules

        return (SequentialModules if self.arrangement == "sequential" else ParallelHeads)(context, self.mtp_depth)

    def cost(self, model: PricedModel, sequence_length: int) -> tuple[int, float]:
        """Module k works on the sequence_length - k positions that have a token to predict."""
        parameters, flops = 0, 0.0
        for depth in range(1, self.mtp_depth + 1):
            length = max(0, sequence_length - depth)
            module = model.block_cost(model.n_layers + depth - 1, length) + vector(model.dim)
            if self.arrangement == "sequential":
                module = module + vector(model.dim) * 2 + matrix(2 * model.dim, model.dim)
            parameters += module.parameters
            head = Cost(weight_flops=2 * model.dim * model.vocab_size)
            flops += (module + head).forward_flops * length / sequence_length
        return parameters, flops

    def check_length(self, sequence_length: int) -> None:
        """ValueError if the last module would have no position to train on."""
        if sequence_length <= self.mtp_depth:
            raise ValueError(
                f"objective.mtp_depth is {self.mtp_depth}; a sequence of {sequence_length} tokens has none so far ahead"
            )


def on(spec: Spec) -> Spec:
    return replace(spec, model=replace(spec.model, objective=setting(spec, "mtp")))


def off(spec: Spec, alternative: str) -> Spec:
    objective: Any = NextToken()
    if alternative == "parallel-heads":
        objective = replace(setting(spec, "mtp"), arrangement="parallel")
    return replace(spec, model=replace(spec.model, objective=objective))
