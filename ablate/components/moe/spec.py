"""Nodes of the feed-forward slot: routed experts (on, and coarser kinds of off) and the dense SwiGLU (off)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ablate.components.component import setting
from ablate.spec.backends import without_compiler, without_triton
from ablate.spec.cost import Cost, matrix
from ablate.spec.machine import Machine
from ablate.spec.model import ModelSpec
from ablate.spec.nodes import BalanceNode, BuildContext
from ablate.spec.ranges import Count, CountOrNone, Positive, Range, checked
from ablate.spec.run import Spec

if TYPE_CHECKING:
    from torch import nn


@checked("feed_forward")
@dataclass(frozen=True, kw_only=True, slots=True)
class SwiGLU:
    """Dense gated feed-forward (arXiv:2002.05202): down(silu(gate x) * up x)."""

    kind: Literal["swiglu"] = "swiglu"
    hidden_dim: Count
    backend: Literal["auto", "compiled", "library"] = "auto"  # of what lies between the linear maps

    def obstacles(self, machine: Machine, dtype: str) -> Mapping[str, str]:
        return {"compiled": without_compiler(machine, dtype), "library": ""}

    def build(self, context: BuildContext, balance: BalanceNode | None) -> nn.Module:
        from ablate.components.moe.module import SwiGLU as Module

        return Module(self.hidden_dim, context, backend=self.backend)

    def cost(self, *, dim: int) -> Cost:
        return matrix(dim, self.hidden_dim) * 3


@checked("feed_forward")
@dataclass(frozen=True, kw_only=True, slots=True)
class RoutedExperts:
    """Mixture of fine-grained experts beside shared ones (arXiv:2412.19437, eqs. 12-16 and section 2.1.2).

    Sigmoid affinities choose `n_activated_experts` of `n_routed_experts` inside the best `n_limited_groups` of
    `n_expert_groups` groups; the chosen ones' affinities, normalised to one and times `route_scale`, weigh them.
    """

    kind: Literal["moe"] = "moe"
    n_routed_experts: Annotated[int, Range(at_least=2, whole=True, instead="one expert leaves no choice: disable moe")]
    n_shared_experts: CountOrNone
    n_activated_experts: Count
    expert_hidden_dim: Count
    n_expert_groups: Count
    n_limited_groups: Count
    route_scale: Positive
    backend: Literal["auto", "compiled", "library", "triton"] = "auto"  # of routing and of the experts' data flow

    def __post_init__(self) -> None:
        if self.n_routed_experts % self.n_expert_groups:
            raise ValueError(
                f"feed_forward.n_expert_groups is {self.n_expert_groups}; "
                f"it must divide n_routed_experts, which is {self.n_routed_experts}"
            )
        if self.n_limited_groups > self.n_expert_groups:
            raise ValueError(
                f"feed_forward.n_limited_groups is {self.n_limited_groups}; "
                f"it must lie between 1 and n_expert_groups, which is {self.n_expert_groups}"
            )
        reachable = self.n_limited_groups * self.experts_per_group
        if self.n_activated_experts > reachable:
            raise ValueError(
                f"feed_forward.n_activated_experts is {self.n_activated_experts}; the experts that one token can reach "
                f"are {reachable} (n_limited_groups x n_routed_experts / n_expert_groups)"
            )

    def obstacles(self, machine: Machine, dtype: str) -> Mapping[str, str]:
        """`library` composes torch's operations, `compiled` has the activation in C, for a processor; `triton` routes
        in two launches and multiplies without a copy.
        """
        return {"compiled": without_compiler(machine, dtype), "library": "", "triton": without_triton(machine)}

    @property
    def experts_per_group(self) -> int:
        return self.n_routed_experts // self.n_expert_groups

    @property
    def n_group_scores(self) -> int:
        """How many of its best affinities a group is ranked by: K_r / M (section 2.1.2)."""
        return min(self.experts_per_group, max(1, self.n_activated_experts // self.n_limited_groups))

    @property
    def activated_hidden_dim(self) -> int:
        return (self.n_activated_experts + self.n_shared_experts) * self.expert_hidden_dim

    def build(self, context: BuildContext, balance: BalanceNode | None) -> nn.Module:
        from ablate.components.moe.module import RoutedExperts as Module
        from ablate.components.moe.module import RoutingRule

        rule = RoutingRule(
            n_routed_experts=self.n_routed_experts,
            n_activated_experts=self.n_activated_experts,
            n_expert_groups=self.n_expert_groups,
            n_limited_groups=self.n_limited_groups,
            n_group_scores=self.n_group_scores,
            route_scale=self.route_scale,
        )
        return Module(
            context,
            rule,
            expert_hidden_dim=self.expert_hidden_dim,
            shared_hidden_dim=self.n_shared_experts * self.expert_hidden_dim,
            selection_bias=balance is not None and balance.selection_bias,
            backend=self.backend,
        )

    def cost(self, *, dim: int) -> Cost:
        expert = matrix(dim, self.expert_hidden_dim) * 3
        used = expert * (self.n_activated_experts + self.n_shared_experts)
        idle = Cost(parameters=expert.parameters * (self.n_routed_experts - self.n_activated_experts))
        gate = dim * self.n_routed_experts
        return used + idle + Cost(parameters=gate, activated=gate, gate_flops=2 * gate)


@checked("balance")
@dataclass(frozen=True, kw_only=True, slots=True)
class Unbalanced:
    """No balancing: the neutral filling of the balance slot, and the alternative `none` of `aux-free`."""

    kind: Literal["none"] = "none"

    def obstacles(self, machine: Machine, dtype: str) -> Mapping[str, str]:
        return {}

    @property
    def selection_bias(self) -> bool:
        return False

    def loss(self, routing: Any, accumulated: Any) -> Any:
        return 0.0

    def callbacks(self) -> list[Any]:
        return []


def on(spec: Spec) -> Spec:
    return _fill(spec, setting(spec, "moe"))


def off(spec: Spec, alternative: str) -> Spec:
    """`dense` has equal activated FLOPs; `coarse` equal activated and total parameters up to whole experts."""
    moe = spec.preset.settings.get("moe")
    if alternative == "dense":
        dense = SwiGLU(hidden_dim=moe.activated_hidden_dim) if moe else spec.preset.model.first_feed_forward
        return replace(spec, model=replace(spec.model, feed_forward=dense, balance=None))
    moe = setting(spec, "moe")
    return _fill(spec, {"coarse": coarse, "no-shared": no_shared, "unlimited": unlimited}[alternative](moe))


def coarse(moe: RoutedExperts) -> RoutedExperts:
    """GShard's top-2 over few wide experts (arXiv:2006.16668): the activated width split in two, none shared."""
    width, rest = divmod(moe.activated_hidden_dim, 2)
    if rest:
        raise ValueError(
            f"moe=coarse splits the activated width, {moe.activated_hidden_dim}, between two experts; it must be even"
        )
    total = (moe.n_routed_experts + moe.n_shared_experts) * moe.expert_hidden_dim
    return replace(
        moe,
        n_routed_experts=round(total / width),  # 2 at least: no more is activated than there is
        n_shared_experts=0,
        n_activated_experts=2,
        expert_hidden_dim=width,
        n_expert_groups=1,
        n_limited_groups=1,
    )


def no_shared(moe: RoutedExperts) -> RoutedExperts:
    """The shared experts' share of the activated width goes to more routed ones."""
    return replace(moe, n_shared_experts=0, n_activated_experts=moe.n_activated_experts + moe.n_shared_experts)


def unlimited(moe: RoutedExperts) -> RoutedExperts:
    """Every token may reach every expert."""
    return replace(moe, n_expert_groups=1, n_limited_groups=1)


def _fill(spec: Spec, moe: RoutedExperts) -> Spec:
    model: ModelSpec = spec.model
    return replace(spec, model=replace(model, feed_forward=moe, balance=model.balance or Unbalanced()))
