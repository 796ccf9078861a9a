"""Feed-forward modules: dense SwiGLU, the router, and dropless routed experts beside shared ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ablate.model.modules import swiglu, unquantised
from ablate.model.turns import Steps, at_once
from ablate.spec.backends import require_concrete
from ablate.spec.nodes import BuildContext


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingRule:
    """How experts are chosen: the best inside the best `n_limited_groups` of `n_expert_groups` groups.

    A group is ranked by the sum of its `n_group_scores` best scores.
    """

    n_routed_experts: int
    n_activated_experts: int
    n_expert_groups: int
    n_limited_groups: int
    n_group_scores: int
    route_scale: float


@dataclass(frozen=True, slots=True)
class Routing:
    """What one pass through a router did. Counts carry no gradient; affinities do, for the auxiliary losses."""

    router: Router
    counts_BE: Tensor  # int64: (token, choice) pairs that went to each expert, by sequence
    affinity_BE: Tensor  # mean over a sequence of the affinities, normalised over the experts
    n_activated: int

    @property
    def n_tokens_per_sequence(self) -> int:
        return int(self.counts_BE[0].sum()) // self.n_activated


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x), gate and up in one product: rows [0, F) of `gate_up` are the gate."""

    def __init__(self, hidden_dim: int, context: BuildContext, *, backend: str) -> None:
        super().__init__()
        self.backend = require_concrete(backend)
        self.gate_up = context.linear.linear(context.dim, 2 * hidden_dim)
        self.down = context.linear.linear(hidden_dim, context.dim)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, None]:
        if whole := self.gate_up.feed_forward(self.down):
            return whole(x_BTD), None
        return self.down(swiglu(self.gate_up(x_BTD), self.backend)), None


class Router(nn.Module):
    """Sigmoid gate with node-limited top-k (arXiv:2412.19437, eqs. 13-16), in float32.

    The bias, where there is one, takes part in the selection and never in the weights (eq. 16).
    """

    bias_E: Tensor | None

    def __init__(self, rule: RoutingRule, dim: int, *, selection_bias: bool) -> None:
        super().__init__()
        self.rule = rule
        self.weight = nn.Parameter(torch.empty(rule.n_routed_experts, dim))
        self.register_buffer("bias_E", torch.zeros(rule.n_routed_experts) if selection_bias else None)

    def logits(self, x_ND: Tensor) -> Tensor:
        """e_i . u_t: (N, E)."""
        with torch.autocast(x_ND.device.type, enabled=False):
            wide = torch.promote_types(x_ND.dtype, torch.float32)
            return x_ND.to(wide) @ self.weight.to(wide).T

    def select(self, logits_NE: Tensor) -> Tensor:
        """The chosen experts, (N, A), best first: eq. 16 inside the best groups of each token.

        Of equal scores the lower expert's and the lower group's come first, in every backend.
        """
        rule, n = self.rule, logits_NE.shape[0]
        score_NE = without_subnormal(torch.sigmoid(logits_NE.detach()))
        if self.bias_E is not None:
            score_NE = score_NE + self.bias_E
        if rule.n_limited_groups < rule.n_expert_groups:
            score_NGX = score_NE.view(n, rule.n_expert_groups, rule.n_routed_experts // rule.n_expert_groups)
            group_NG = score_NGX.topk(rule.n_group_scores, dim=-1).values.sum(-1)
            best_NM = _best(group_NG, rule.n_limited_groups)
            reachable_NG = torch.zeros_like(group_NG, dtype=torch.bool).scatter_(1, best_NM, True)
            score_NE = score_NGX.masked_fill(~reachable_NG.unsqueeze(-1), float("-inf")).flatten(1)
        return _best(score_NE, rule.n_activated_experts)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Routing]:
        """Chosen experts (N, A), their weights (N, A), and the statistics.

        Affinities sigmoid(e_i . u_t), eq. 15, are divided by their sums as logarithms: all of a token's may underflow.
        """
        b, experts = x_BTD.shape[0], self.rule.n_routed_experts
        logits_NE = self.logits(x_BTD.flatten(0, 1))
        expert_NA, log_NE = self.select(logits_NE), F.logsigmoid(logits_NE)
        weight_NA = log_NE.gather(1, expert_NA).softmax(-1) * self.rule.route_scale
        counts_BE = _counts(expert_NA.view(b, x_BTD.shape[1] * self.rule.n_activated_experts), experts)
        affinity_BE = log_NE.softmax(-1).view(*x_BTD.shape[:2], experts).mean(1)
        return expert_NA, weight_NA, Routing(self, counts_BE, affinity_BE, self.rule.n_activated_experts)


@dataclass(frozen=True, slots=True)
class Permutation:
    """Where the P = N A (token, choice) pairs stand when sorted by expert, equal experts in token order."""

    token_of_row_P: Tensor  # token of each sorted row
    row_of_choice_NA: Tensor  # sorted row of each choice
    offsets_E: Tensor  # int32, ends of the experts' rows


def place(expert_NA: Tensor, counts_BE: Tensor) -> Permutation:
    """The placement of a choice of experts, by torch's sort."""
    order_P = expert_NA.flatten().argsort(stable=True)
    place_P = torch.empty_like(order_P).scatter_(0, order_P, torch.arange(order_P.numel(), device=order_P.device))
    offsets_E = counts_BE.sum(0).cumsum(0).to(torch.int32)
    return Permutation(order_P // expert_NA.shape[1], place_P.view_as(expert_NA), offsets_E)


class Experts(nn.Module):
    """E SwiGLU networks over tokens that are routed to them: sum over a token's choices of weight times expert."""

    def __init__(self, context: BuildContext, n_experts: int, hidden_dim: int, *, backend: str) -> None:
        super().__init__()
        self.backend = require_concrete(backend)
        self.gate_up = context.linear.grouped(n_experts, context.dim, 2 * hidden_dim)
        self.down = context.linear.grouped(n_experts, hidden_dim, context.dim)

    def forward(self, x_ND: Tensor, weight_NA: Tensor, where: Permutation) -> Tensor:
        if self.backend == "triton" and (whole := self.gate_up.experts(self.down)):
            return whole(x_ND, weight_NA, where.token_of_row_P, where.row_of_choice_NA, where.offsets_E)
        y_PD = self.rows(x_ND[where.token_of_row_P], where.offsets_E)
        if self.backend == "triton":
            return combine(y_PD, weight_NA, where.row_of_choice_NA)
        return (y_PD[where.row_of_choice_NA] * weight_NA.unsqueeze(-1).to(y_PD.dtype)).sum(1)

    def rows(self, x_PD: Tensor, offsets_E: Tensor) -> Tensor:
        """Rows sorted by expert, and the ends of the experts' -> what these make of them."""
        return self.down(swiglu(self.gate_up(x_PD, offsets_E), self.backend), offsets_E)


class RoutedExperts(nn.Module):
    """sum over chosen experts of weight times expert(x), plus the shared experts (eq. 12). No token is dropped.

    Where experts are divided over ranks, `experts` are this rank's and `transport` brings tokens to all.
    """

    transport: Any = None

    def __init__(
        self,
        context: BuildContext,
        rule: RoutingRule,
        *,
        expert_hidden_dim: int,
        shared_hidden_dim: int,
        selection_bias: bool,
        backend: str,
    ) -> None:
        """`shared_hidden_dim`: width of the shared experts together; 0 for none."""
        super().__init__()
        self.router = Router(rule, context.dim, selection_bias=selection_bias)
        self.experts = Experts(context, rule.n_routed_experts, expert_hidden_dim, backend=backend)
        self.shared = SwiGLU(shared_hidden_dim, context, backend=backend) if shared_hidden_dim else None

    def divide(self, share: range, transport: Any) -> tuple[str, ...]:
        """Keep the experts of a share alone, and reach all of them by `transport`.

        Returns the names of the parameters whose rows are experts and are now those of the share.
        """
        self.transport = transport
        names = []
        for name, parameter in self.experts.named_parameters():
            path, _, last = name.rpartition(".")
            own = nn.Parameter(parameter.detach()[share.start : share.stop].clone())
            setattr(self.experts.get_submodule(path), last, own)
            names.append(f"experts.{name}")
        return tuple(names)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing]:
        return at_once(self.steps(x_BTD))

    @property
    def sends(self) -> bool:
        """Whether tokens go to experts on other ranks."""
        return self.transport is not None

    def steps(self, x_BTD: Tensor) -> Steps[tuple[Tensor, Routing]]:
        """`forward`, left wherever rows are on their way to experts or back."""
        shared, x_BTD = x_BTD, unquantised(x_BTD)
        if self.transport is not None:
            return (yield from self._divided(x_BTD, shared))
        if self.experts.backend == "triton":
            where, weight_NA, routing = self._launched(x_BTD)
        else:
            expert_NA, weight_NA, routing = self.router(x_BTD)
            where = place(expert_NA, routing.counts_BE)
        y_BTD = self.experts(x_BTD.flatten(0, 1), weight_NA, where).view_as(x_BTD)
        return (y_BTD if self.shared is None else y_BTD + self.shared(shared)[0]), routing

    def _divided(self, x_BTD: Tensor, shared: Any) -> Steps[tuple[Tensor, Routing]]:
        """The shared experts compute while tokens are on their way."""
        expert_NA, weight_NA, routing = self.router(x_BTD)
        sent = self.transport.send(x_BTD.flatten(0, 1), weight_NA, expert_NA)
        yield
        beside = None if self.shared is None else self.shared(shared)[0]
        y_ND = yield from self.transport.receive(sent, self.experts.rows)
        y_BTD = y_ND.view_as(x_BTD)
        return (y_BTD if beside is None else y_BTD + beside), routing

    def _launched(self, x_BTD: Tensor) -> tuple[Permutation, Tensor, Routing]:
        """Routing and placement by their kernels."""
        from ablate.components.moe.kernel import route

        router, rule = self.router, self.router.rule
        routed = route(
            router.logits(x_BTD.flatten(0, 1)),
            router.bias_E,
            n_groups=rule.n_expert_groups,
            n_limited_groups=rule.n_limited_groups,
            n_group_scores=rule.n_group_scores,
            n_activated=rule.n_activated_experts,
            route_scale=rule.route_scale,
            n_sequences=x_BTD.shape[0],
        )
        routing = Routing(router, routed.counts_BE, routed.affinity_BE, rule.n_activated_experts)
        return Permutation(routed.token_of_row_P, routed.row_of_choice_NA, routed.offsets_E), routed.weight_NA, routing


def combine(y_PD: Tensor, weight_NA: Tensor, row_of_choice_NA: Tensor) -> Tensor:
    from ablate.kernels.combine import combine as kernel

    return kernel(y_PD, weight_NA, row_of_choice_NA)


def without_subnormal(affinity: Tensor) -> Tensor:
    """Zero in place of numbers so small that backends differ in whether they have them at all."""
    return F.threshold(affinity, torch.finfo(affinity.dtype).tiny, 0.0)


def _best(score_NX: Tensor, n: int) -> Tensor:
    """Indices of the n largest of every row; topk gives no order of equal ones."""
    return score_NX.sort(dim=-1, descending=True, stable=True).indices[:, :n].contiguous()


def _counts(expert_BX: Tensor, n_experts: int) -> Tensor:
    # Not bincount, for whose size the host waits; sums of integers, whose order changes nothing.
    return expert_BX.new_zeros(expert_BX.shape[0], n_experts).scatter_add_(1, expert_BX, torch.ones_like(expert_BX))
