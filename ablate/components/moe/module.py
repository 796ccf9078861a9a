"""Feed-forward modules: dense SwiGLU, the router, and dropless routed experts beside shared ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ablate.components.moe.spec import RoutedExperts as RoutedNode
from ablate.spec import BuildContext


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

    def __init__(self, hidden_dim: int, context: BuildContext) -> None:
        super().__init__()
        self.gate_up = context.linear.linear(context.dim, 2 * hidden_dim)
        self.down = context.linear.linear(hidden_dim, context.dim)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, None]:
        gate, up = self.gate_up(x_BTD).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up), None


class Router(nn.Module):
    """Sigmoid gate with node-limited top-k (arXiv:2412.19437, eqs. 13-16), in float32.

    The bias, where there is one, takes part in the selection and never in the weights (eq. 16).
    """

    bias_E: Tensor | None

    def __init__(self, node: RoutedNode, dim: int, *, selection_bias: bool) -> None:
        super().__init__()
        self.node = node
        self.weight = nn.Parameter(torch.empty(node.n_routed_experts, dim))
        self.register_buffer("bias_E", torch.zeros(node.n_routed_experts) if selection_bias else None)

    def affinities(self, x_ND: Tensor) -> Tensor:
        """sigmoid(e_i . u_t), eq. 15: (N, E)."""
        with torch.autocast(x_ND.device.type, enabled=False):
            wide = torch.promote_types(x_ND.dtype, torch.float32)
            return torch.sigmoid(x_ND.to(wide) @ self.weight.to(wide).T)

    def select(self, affinity_NE: Tensor) -> Tensor:
        """Indices of the chosen experts, (N, A): eq. 16 inside the best groups of each token."""
        node, n = self.node, affinity_NE.shape[0]
        score_NE = affinity_NE.detach() if self.bias_E is None else affinity_NE.detach() + self.bias_E
        if node.n_limited_groups < node.n_expert_groups:
            score_NGX = score_NE.view(n, node.n_expert_groups, node.experts_per_group)
            group_NG = score_NGX.topk(node.n_group_scores, dim=-1).values.sum(-1)
            best_NM = group_NG.topk(node.n_limited_groups, dim=-1).indices
            reachable_NG = torch.zeros_like(group_NG, dtype=torch.bool).scatter_(1, best_NM, True)
            score_NE = score_NGX.masked_fill(~reachable_NG.unsqueeze(-1), float("-inf")).view(n, -1)
        return score_NE.topk(node.n_activated_experts, dim=-1).indices

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Routing]:
        """Chosen experts (N, A), their weights (N, A), and the statistics."""
        b, experts = x_BTD.shape[0], self.node.n_routed_experts
        affinity_NE = self.affinities(x_BTD.flatten(0, 1))
        expert_NA = self.select(affinity_NE)
        chosen_NA = affinity_NE.gather(1, expert_NA)
        weight_NA = chosen_NA / chosen_NA.sum(-1, keepdim=True) * self.node.route_scale
        counts_BE = _counts(expert_NA.view(b, -1), experts)
        normalised_NE = affinity_NE / affinity_NE.sum(-1, keepdim=True)
        affinity_BE = normalised_NE.unflatten(0, (b, -1)).mean(1)
        return expert_NA, weight_NA, Routing(self, counts_BE, affinity_BE, self.node.n_activated_experts)


class Experts(nn.Module):
    """E SwiGLU networks applied to rows grouped by expert; `offsets_E` (int32) are the ends of the groups."""

    def __init__(self, node: RoutedNode, context: BuildContext) -> None:
        super().__init__()
        n, hidden = node.n_routed_experts, node.expert_hidden_dim
        self.gate_up = context.linear.grouped(n, context.dim, 2 * hidden)
        self.down = context.linear.grouped(n, hidden, context.dim)

    def forward(self, x_ND: Tensor, offsets_E: Tensor) -> Tensor:
        gate, up = self.gate_up(x_ND, offsets_E).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up, offsets_E)


class RoutedExperts(nn.Module):
    """sum over chosen experts of weight times expert(x), plus the shared experts (eq. 12). No token is dropped."""

    def __init__(self, node: RoutedNode, context: BuildContext, *, selection_bias: bool) -> None:
        super().__init__()
        self.router = Router(node, context.dim, selection_bias=selection_bias)
        self.experts = Experts(node, context)
        self.shared = SwiGLU(node.n_shared_experts * node.expert_hidden_dim, context) if node.n_shared_experts else None

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing]:
        expert_NA, weight_NA, routing = self.router(x_BTD)
        n_activated = expert_NA.shape[1]
        # Rows sorted by expert, equal experts in token order: the sum below is then in a fixed order.
        order_P = expert_NA.flatten().argsort(stable=True)
        offsets_E = routing.counts_BE.sum(0).cumsum(0).to(torch.int32)
        x_PD = x_BTD.flatten(0, 1)[order_P // n_activated]
        y_PD = self.experts(x_PD, offsets_E)
        place_P = torch.empty_like(order_P).scatter_(0, order_P, torch.arange(order_P.numel(), device=order_P.device))
        y_ND = (y_PD[place_P].unflatten(0, (-1, n_activated)) * weight_NA.unsqueeze(-1).to(y_PD.dtype)).sum(1)
        y_BTD = y_ND.view_as(x_BTD)
        return (y_BTD if self.shared is None else y_BTD + self.shared(x_BTD)[0]), routing


def _counts(expert_BX: Tensor, n_experts: int) -> Tensor:
    b = expert_BX.shape[0]
    rows = torch.arange(b, device=expert_BX.device).unsqueeze(1) * n_experts
    return torch.bincount((expert_BX + rows).flatten(), minlength=b * n_experts).view(b, n_experts)
