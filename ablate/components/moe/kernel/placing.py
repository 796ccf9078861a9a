"""Where routed (token, choice) pairs stand when sorted by expert: the rows' tokens, and the pairs' rows.

Letters as in routing.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ablate.components.moe.kernel.routing import CHUNK, TABLE, TOKENS, partition
from ablate.kernels.launch import ceil_div, launch, machine_of, operator


@triton.jit
def place_forward_kernel(
    expert_ptr, rank_ptr, offsets_ptr, before_ptr, start_ptr, rows_ptr, place_ptr, n_pairs, n_tokens, n_splits,
    E: tl.constexpr, A: tl.constexpr, TOKENS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Rows of BLOCK_P (token, choice) pairs, which stand in the order of their tokens, and the tokens of these rows.

    n_tokens: of a sequence, which n_splits routing programs shared.
    """
    pair_P = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside_P = pair_P < n_pairs
    expert_P = tl.load(expert_ptr + pair_P, inside_P, other=0)
    row_P = pair_P // A
    program_P = row_P // n_tokens * n_splits + row_P % n_tokens // TOKENS
    place_P = tl.load(rank_ptr + pair_P, inside_P, other=0)
    place_P += tl.load(before_ptr + program_P.to(tl.int64) * E + expert_P, inside_P, other=0)
    place_P += tl.load(start_ptr + (program_P // CHUNK).to(tl.int64) * E + expert_P, inside_P, other=0)
    place_P += tl.load(offsets_ptr + expert_P - 1, inside_P & (expert_P > 0), other=0)
    tl.store(place_ptr + pair_P, place_P, inside_P)
    tl.store(rows_ptr + place_P, row_P, inside_P)


@operator("place")
def place_op(
    expert_NA: Tensor, rank_NA: Tensor, offsets_E: Tensor, before_LE: Tensor, start_CE: Tensor, n_sequences: int
) -> tuple[Tensor, Tensor]:
    """Token of each sorted row, (P,), and sorted row of each choice, (N, A), from what `route` gave."""
    (n, a), e = expert_NA.shape, offsets_E.shape[0]
    token_of_row_P, row_of_choice_NA = _outputs(expert_NA)
    chosen = TABLE.choose("place_forward", machine_of(expert_NA.device))
    launch(
        place_forward_kernel, (ceil_div(n * a, chosen.blocks["BLOCK_P"]),), expert_NA, rank_NA, offsets_E, before_LE,
        start_CE, token_of_row_P, row_of_choice_NA, n * a, n // n_sequences, partition(n, n_sequences)[0],
        E=e, A=a, TOKENS=TOKENS, CHUNK=CHUNK, **chosen.options,
    )  # fmt: skip
    return token_of_row_P, row_of_choice_NA


@place_op.register_fake
def _(
    expert_NA: Tensor, rank_NA: Tensor, offsets_E: Tensor, before_LE: Tensor, start_CE: Tensor, n_sequences: int
) -> tuple[Tensor, Tensor]:
    return _outputs(expert_NA)


def _outputs(expert_NA: Tensor) -> tuple[Tensor, Tensor]:
    return expert_NA.new_empty(expert_NA.numel()), torch.empty_like(expert_NA)
