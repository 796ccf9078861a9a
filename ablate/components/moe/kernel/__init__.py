"""The router as kernels: two launches from the gate's logits to the rows that the experts read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ablate.components.moe.kernel.placing import place_op
from ablate.components.moe.kernel.routing import TABLE, route_backward_op, route_op

__all__ = ["KERNELS", "TABLE", "Routed", "example_launches", "place_op", "route", "route_backward_op", "route_op"]

KERNELS: dict[str, tuple[str, ...]] = {
    "route_forward_kernel": (),
    "route_backward_kernel": (),
    "place_forward_kernel": (),
}


class Routed(NamedTuple):
    """What one routing of N = B T tokens gave; of its P = N A pairs those of an expert stand in token order."""

    expert_NA: Tensor  # int32
    weight_NA: Tensor  # float32; differentiable
    counts_BE: Tensor  # int64: pairs of a sequence that went to each expert
    affinity_BE: Tensor  # float32: mean over a sequence of the affinities, normalised over the experts; differentiable
    offsets_E: Tensor  # int32: ends of the experts' rows
    token_of_row_P: Tensor  # int32: token of each sorted row
    row_of_choice_NA: Tensor  # int32: sorted row of each choice


def route(
    logits_NE: Tensor,
    bias_E: Tensor | None,
    *,
    n_groups: int,
    n_limited_groups: int,
    n_group_scores: int,
    n_activated: int,
    route_scale: float,
    n_sequences: int,
) -> Routed:
    """Sigmoid routing with node-limited top-k (arXiv:2412.19437, eqs. 13-16 and section 2.1.2), and its placement.

    logits: (N, E) float32, the gate's product; bias: (E,) float32, added for the selection and in no weight. Groups are
    ranked by the sum of their n_group_scores best scores. A token's experts stand best first; of equal scores the
    lower expert's is chosen, and NaN is the largest. Results are bit for bit the same from run to run. Raises
    ValueError for other dtypes or strides, and for sizes that do not fit.
    """
    weight_NA, affinity_BE, expert_NA, counts_BE, offsets_E, rank_NA, before_LE, start_CE = route_op(
        logits_NE, bias_E, n_groups, n_limited_groups, n_group_scores, n_activated, route_scale, n_sequences
    )
    token_of_row_P, row_of_choice_NA = place_op(expert_NA, rank_NA, offsets_E, before_LE, start_CE, n_sequences)
    return Routed(expert_NA, weight_NA, counts_BE, affinity_BE, offsets_E, token_of_row_P, row_of_choice_NA)


def example_launches() -> Iterator[Any]:
    """Launches on meta tensors that use every shipped configuration."""
    sizes = (
        (16, 1, 1, 1, 2),
        (64, 4, 2, 3, 6),
        (128, 1, 1, 1, 8),
        (160, 8, 3, 2, 6),
        (256, 8, 4, 2, 8),
        (384, 1, 1, 1, 8),
    )
    for experts, groups, limited, scores, activated in sizes:
        logits_NE = torch.empty(32768, experts, device="meta")
        for bias_E in (torch.empty(experts, device="meta"), None):
            made = route_op.launched(logits_NE, bias_E, groups, limited, scores, activated, 2.5, 8)
        weight_NA, affinity_BE, expert_NA, _, offsets_E, rank_NA, before_LE, start_CE = made
        yield place_op.launched(expert_NA, rank_NA, offsets_E, before_LE, start_CE, 8)
        yield route_backward_op.launched(logits_NE, expert_NA, weight_NA, affinity_BE, 2.5)
