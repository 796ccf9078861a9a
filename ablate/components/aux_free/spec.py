"""Nodes of the balance slot: the selection bias (on), and auxiliary losses over different sets of tokens (off)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ablate.components.component import setting
from ablate.components.moe.spec import Unbalanced
from ablate.spec.backends import without_triton
from ablate.spec.machine import Machine
from ablate.spec.nodes import BalanceNode
from ablate.spec.ranges import Count, NotNegative, Positive, checked
from ablate.spec.run import Spec

if TYPE_CHECKING:
    from torch import Tensor

    from ablate.components.moe.module import Router, Routing


@checked("balance")
@dataclass(frozen=True, kw_only=True, slots=True)
class BiasBalance:
    """Auxiliary-loss-free balancing (arXiv:2408.15664) with the complementary sequence-wise loss.

    Once per optimizer step each expert's bias moves by `bias_update_speed` (gamma) against the sign of its load
    error (arXiv:2412.19437, section 2.1.2); `sequence_loss_weight` is alpha of eqs. 17-20.
    """

    kind: Literal["aux-free"] = "aux-free"
    bias_update_speed: Positive
    sequence_loss_weight: NotNegative
    backend: Literal["auto", "library", "triton"] = "auto"  # of the update

    def obstacles(self, machine: Machine, dtype: str) -> Mapping[str, str]:
        return {"library": "", "triton": without_triton(machine)}

    @property
    def selection_bias(self) -> bool:
        return True

    def loss(self, routing: Sequence[Routing], accumulated: Mapping[Router, Tensor]) -> Any:
        from ablate.components.aux_free.module import balance_loss

        return self.sequence_loss_weight * balance_loss(routing, sequences_per_set=1)

    def callbacks(self) -> list[Any]:
        from ablate.components.aux_free.callback import BiasUpdate

        return [BiasUpdate(self.bias_update_speed, self.backend)]


@checked("balance")
@dataclass(frozen=True, kw_only=True, slots=True)
class AuxiliaryLoss:
    """A balance loss alone. Loads are those of one sequence, of `n_sequences`, or of the whole optimizer step."""

    kind: Literal["aux-loss"] = "aux-loss"
    scope: Literal["sequence", "micro-batch", "batch"]
    balance_loss_weight: Positive
    n_sequences: Count = 1  # of a micro-batch; 1 for the other scopes

    @property
    def over_step(self) -> bool:
        """Whether a micro-batch's loss depends on those before it in the optimizer step."""
        return self.scope == "batch"

    def obstacles(self, machine: Machine, dtype: str) -> Mapping[str, str]:
        return {}

    @property
    def selection_bias(self) -> bool:
        return False

    def loss(self, routing: Sequence[Routing], accumulated: Mapping[Router, Tensor]) -> Any:
        from ablate.components.aux_free.module import balance_loss, global_balance_loss

        if self.scope == "batch":
            return self.balance_loss_weight * global_balance_loss(routing, accumulated)
        return self.balance_loss_weight * balance_loss(routing, sequences_per_set=self.n_sequences)

    def callbacks(self) -> list[Any]:
        return []


@checked("aux-free")
@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a preset says of balancing: gamma, alpha, and the alternatives' own weight and set of sequences."""

    bias_update_speed: Positive
    sequence_loss_weight: NotNegative
    balance_loss_weight: Positive
    micro_batch_sequences: Count
    backend: Literal["auto", "library", "triton"] = "auto"


def on(spec: Spec) -> Spec:
    if spec.model.balance is None:
        raise ValueError(
            "aux-free balances the load of experts, and with moe off there are none; "
            "leave aux-free off too, or choose an alternative of moe that routes (coarse, no-shared, unlimited)"
        )
    settings: Settings = setting(spec, "aux-free")
    node = BiasBalance(
        bias_update_speed=settings.bias_update_speed,
        sequence_loss_weight=settings.sequence_loss_weight,
        backend=settings.backend,
    )
    return replace(spec, model=replace(spec.model, balance=node))


def off(spec: Spec, alternative: str) -> Spec:
    if spec.model.balance is None:
        if alternative != "sequence-aux":
            raise ValueError(
                f"aux-free={alternative} chooses how experts are balanced, and with moe off there are none; "
                "leave the alternative of aux-free out, or choose one of moe that routes (coarse, no-shared, unlimited)"
            )
        return spec
    return replace(spec, model=replace(spec.model, balance=_alternative(spec, alternative)))


def _alternative(spec: Spec, alternative: str) -> BalanceNode:
    if alternative == "none":
        return Unbalanced()
    settings: Settings = setting(spec, "aux-free")
    weight = settings.balance_loss_weight
    if alternative == "sequence-aux":
        return AuxiliaryLoss(scope="sequence", balance_loss_weight=weight)
    if alternative == "batch-aux":
        return AuxiliaryLoss(scope="batch", balance_loss_weight=weight)
    micro_batch = settings.micro_batch_sequences
    if spec.trainer.micro_batch_size % micro_batch:
        raise ValueError(
            f"aux-free=micro-batch-aux balances over {micro_batch} sequences; "
            f"that must divide the trainer's micro_batch_size, which is {spec.trainer.micro_batch_size}"
        )
    return AuxiliaryLoss(scope="micro-batch", balance_loss_weight=weight, n_sequences=micro_batch)
