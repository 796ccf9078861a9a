"""Routing of tokens to experts in one launch: choice, weights, loads, and where every program's pairs begin.

Letters: B sequences, N tokens, E experts, A choices of a token, P = N A pairs, G groups of experts, X experts of a
group; L programs of the launch, C chunks of programs, R programs or chunks that are summed at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ablate.components.moe.kernel.select import (
    MIN_AFFINITY,
    OUT_OF_REACH,
    TAKEN,
    expert_at,
    key_of,
    position_of,
    shares,
    sigmoid,
    within_best_groups,
)
from ablate.kernels.launch import ceil_div, launch, machine_of, next_power_of_2, operator
from ablate.kernels.operands import check_rows, check_shape
from ablate.kernels.table import Table

TABLE = Table(Path(__file__).with_name("routing.json"))
TOKENS = 32  # of one program, all of one sequence
MAX_PAIRS = 2**30  # so that int32 counts them, and the last program's beyond the end
CHUNK = 32  # programs whose counts one of them sums
Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@triton.jit
def route_forward_kernel(
    logits_ptr, bias_ptr, expert_ptr, weight_ptr, rank_ptr, share_ptr, counts_ptr, count_ptr, before_ptr, total_ptr,
    start_ptr, offsets_ptr, arrived_ptr, n_tokens, n_splits, n_programs, stride_ln, scale,
    GROUPS: tl.constexpr, IN_GROUP: tl.constexpr, LIMITED: tl.constexpr, SCORES: tl.constexpr, A: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_X: tl.constexpr, TOKENS: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """n_tokens: of a sequence, which n_splits programs share. Groups stand BLOCK_X columns apart."""
    BLOCK_E: tl.constexpr = BLOCK_G * BLOCK_X
    E: tl.constexpr = GROUPS * IN_GROUP
    program = tl.program_id(0)
    sequence = program // n_splits
    position_E = tl.arange(0, BLOCK_E)
    expert_E = expert_at(position_E, IN_GROUP, BLOCK_X)
    real_E = (position_E // BLOCK_X < GROUPS) & (position_E % BLOCK_X < IN_GROUP)
    choice_A = tl.arange(0, BLOCK_A)
    count_E = tl.zeros((BLOCK_E,), tl.int32)
    share_E = tl.zeros((BLOCK_E,), tl.float32)
    for first in range(0, TOKENS, BLOCK_N):
        token_N = program % n_splits * TOKENS + first + tl.arange(0, BLOCK_N)
        inside_N = token_N < n_tokens
        wide_N = sequence.to(tl.int64) * n_tokens + token_N
        logits_N = logits_ptr + wide_N * stride_ln
        inside_NE = inside_N[:, None] & real_E[None, :]
        x_NE = tl.load(logits_N[:, None] + expert_E[None, :], inside_NE, other=float("-inf"))
        share_E += tl.sum(shares(x_NE, inside_N), 0)

        score_NE = sigmoid(x_NE)
        score_NE = tl.where(score_NE < MIN_AFFINITY, 0.0, score_NE)
        if bias_ptr is not None:
            score_NE += tl.load(bias_ptr + expert_E, real_E, other=0.0)[None, :]
        key_NE = tl.where(real_E[None, :], key_of(score_NE, position_E[None, :], BLOCK_E), OUT_OF_REACH)
        if LIMITED < GROUPS:
            key_NE = within_best_groups(key_NE, GROUPS, LIMITED, SCORES, BLOCK_N, BLOCK_G, BLOCK_X)
        position_NA = tl.zeros((BLOCK_N, BLOCK_A), tl.int32)
        for a in range(A):
            best_N = position_of(tl.max(key_NE, 1), BLOCK_E)
            key_NE = tl.where(position_E[None, :] == best_N[:, None], TAKEN + tl.cast(a, tl.int64), key_NE)
            position_NA = tl.where(choice_A[None, :] == a, best_N[:, None], position_NA)

        # A token takes an expert once, so the rank among the program's pairs of an expert counts tokens.
        taken_NE = (key_NE >= TAKEN) & (key_NE < TAKEN + A) & inside_NE
        one_NE = taken_NE.to(tl.int32)
        rank_NE = count_E[None, :] + tl.cumsum(one_NE, 0) - one_NE
        count_E += tl.sum(one_NE, 0)
        to_NE = rank_ptr + wide_N[:, None] * A + (key_NE - TAKEN)
        tl.store(to_NE, rank_NE, taken_NE)
        expert_NA = expert_at(position_NA, IN_GROUP, BLOCK_X)
        inside_NA = inside_N[:, None] & (choice_A < A)[None, :]
        # The affinities themselves, which the bias is no part of.
        chosen_NA = tl.load(logits_N[:, None] + expert_NA, inside_NA, other=float("-inf"))
        weight_NA = shares(chosen_NA, inside_N) * scale
        pair_NA = wide_N[:, None] * A + choice_A[None, :]
        tl.store(expert_ptr + pair_NA, expert_NA, inside_NA)
        tl.store(weight_ptr + pair_NA, weight_NA, inside_NA)

    at_E = program.to(tl.int64) * E + expert_E
    tl.store(share_ptr + at_E, share_E, real_E)
    tl.store(count_ptr + at_E, count_E, real_E)
    to_E = counts_ptr + sequence.to(tl.int64) * E + expert_E
    tl.atomic_add(to_E, count_E.to(tl.int64), real_E & (count_E > 0), sem="relaxed")

    # Of a chunk's programs the last to arrive sums their counts; of those, the last sums the chunks'. The barrier and
    # the atomic's release show the others what all threads have stored; its acquire and .cg read what they stored.
    chunk = program // CHUNK
    n_chunks = tl.cdiv(n_programs, CHUNK)
    tl.debug_barrier()
    arrived = tl.atomic_add(arrived_ptr + 1 + chunk, 1, sem="acq_rel")
    if arrived == tl.minimum(n_programs - chunk * CHUNK, CHUNK) - 1:
        end = tl.minimum((chunk + 1) * CHUNK, n_programs)
        total_E = sums_before(count_ptr, before_ptr, chunk * CHUNK, end, expert_E, real_E, E, BLOCK_E, ROWS)
        tl.store(total_ptr + chunk * E + expert_E, total_E, real_E)
        tl.debug_barrier()
        arrived = tl.atomic_add(arrived_ptr, 1, sem="acq_rel")
        if arrived == n_chunks - 1:
            total_E = sums_before(total_ptr, start_ptr, 0, n_chunks, expert_E, real_E, E, BLOCK_E, ROWS)
            tl.store(offsets_ptr + expert_E, tl.cumsum(total_E, 0), real_E)


@triton.jit
def sums_before(
    from_ptr, to_ptr, first, end, expert_E, real_E, E: tl.constexpr, BLOCK_E: tl.constexpr, ROWS: tl.constexpr
):
    """Of rows [first, end), at each row the sum of the rows before it; returns the sum of all."""
    sum_E = tl.zeros((BLOCK_E,), tl.int32)
    for start in range(first, end, ROWS):
        row_R = start + tl.arange(0, ROWS)
        inside_RE = (row_R < end)[:, None] & real_E[None, :]
        at_RE = row_R[:, None].to(tl.int64) * E + expert_E[None, :]
        count_RE = tl.load(from_ptr + at_RE, inside_RE, other=0, cache_modifier=".cg")
        tl.store(to_ptr + at_RE, sum_E[None, :] + tl.cumsum(count_RE, 0) - count_RE, inside_RE)
        sum_E += tl.sum(count_RE, 0)
    return sum_E


@operator("route")
def route_op(
    logits_NE: Tensor, bias_E: Tensor | None, n_groups: int, n_limited_groups: int, n_group_scores: int,
    n_activated: int, route_scale: float, n_sequences: int,
) -> Outputs:  # fmt: skip
    """Weights (N, A) and affinities (B, E), which are differentiable; experts (N, A), counts (B, E), ends of the
    experts' rows (E,); and for `place` the rank of each pair of an expert in its program, and the expert's pairs in
    the programs of a chunk before each, and in the chunks before each."""
    _check(logits_NE, bias_E, n_groups, n_limited_groups, n_group_scores, n_activated, n_sequences)
    n, e = logits_NE.shape
    n_splits, n_programs, n_chunks = partition(n, n_sequences)
    weight_NA, _, expert_NA, _, offsets_E, rank_NA, before_LE, start_CE = _outputs(logits_NE, n_activated, n_sequences)
    # One filling of zeros: counts first, then the counters of programs that have arrived.
    zeros = logits_NE.new_zeros(n_sequences * e + 1 + n_chunks, dtype=torch.int64)
    counts_BE, arrived = zeros[: n_sequences * e].view(n_sequences, e), zeros[n_sequences * e :]
    share_LE = logits_NE.new_empty(n_programs, e)
    groups = n_groups if n_limited_groups < n_groups else 1  # without a limit no group is looked at
    blocks = {"BLOCK_G": next_power_of_2(groups), "BLOCK_X": next_power_of_2(e // groups)}
    chosen = TABLE.choose("route_forward", machine_of(logits_NE.device), E=blocks["BLOCK_G"] * blocks["BLOCK_X"])
    if not n:
        offsets_E.zero_()
    launch(
        route_forward_kernel, (n_programs,), logits_NE, bias_E, expert_NA, weight_NA, rank_NA, share_LE, counts_BE,
        torch.empty_like(before_LE), before_LE, torch.empty_like(start_CE), start_CE, offsets_E, arrived,
        n // n_sequences, n_splits, n_programs, logits_NE.stride(0), route_scale,
        GROUPS=groups, IN_GROUP=e // groups, LIMITED=min(n_limited_groups, groups), SCORES=n_group_scores,
        A=n_activated, BLOCK_A=next_power_of_2(n_activated), TOKENS=TOKENS, CHUNK=CHUNK, **blocks, **chosen.options,
    )  # fmt: skip
    affinity_BE = share_LE.view(n_sequences, n_splits, e).sum(1) / (n // n_sequences)
    return weight_NA, affinity_BE, expert_NA, counts_BE, offsets_E, rank_NA, before_LE, start_CE


def partition(n_tokens: int, n_sequences: int) -> tuple[int, int, int]:
    """Programs of a sequence, programs, chunks of programs."""
    n_splits = ceil_div(n_tokens // n_sequences, TOKENS)
    return n_splits, n_sequences * n_splits, ceil_div(n_sequences * n_splits, CHUNK)


def _outputs(logits_NE: Tensor, n_activated: int, n_sequences: int) -> Outputs:
    n, e = logits_NE.shape
    _, n_programs, n_chunks = partition(n, n_sequences)
    shapes = ((n, n_activated), (n_programs, e), (n_chunks, e))
    expert_NA, before_LE, start_CE = (logits_NE.new_empty(shape, dtype=torch.int32) for shape in shapes)
    return (
        logits_NE.new_empty(shapes[0]),
        logits_NE.new_empty(n_sequences, e),
        expert_NA,
        logits_NE.new_empty(n_sequences, e, dtype=torch.int64),
        logits_NE.new_empty(e, dtype=torch.int32),
        torch.empty_like(expert_NA),
        before_LE,
        start_CE,
    )


@route_op.register_fake
def _(logits_NE: Tensor, *settings: Any) -> Outputs:
    return _outputs(logits_NE, settings[4], settings[6])


def _check(
    logits_NE: Tensor, bias_E: Tensor | None, groups: int, limited: int, scores: int, activated: int, sequences: int
) -> None:
    check_rows("the router's logits", logits_NE, (torch.float32,), 2)
    n, e = logits_NE.shape
    if bias_E is not None:
        check_rows("the router's bias", bias_E, (torch.float32,), 1)
        check_shape("the router's bias", bias_E, (e,))
    if groups < 1 or e % groups or not 1 <= limited <= groups or not 1 <= scores <= e // groups:
        raise ValueError(
            f"{e} experts in {groups} groups, of which {limited} are chosen by their {scores} best scores: groups must "
            "be equal, and what is chosen of them and in them must be at least 1 and no more than there is"
        )
    if not 1 <= activated <= limited * (e // groups):
        raise ValueError(
            f"{activated} experts are to be chosen of {limited * (e // groups)} that a token can reach; choose at "
            "least 1 and no more than these"
        )
    if sequences < 1 or n % sequences:
        raise ValueError(f"{n} tokens are no {sequences} sequences of equal length; give their number")
    if n * activated >= 2**31:
        raise ValueError(
            f"{n} tokens with {activated} experts each are more than 2^31 - 1 pairs; route fewer at a time"
        )


@triton.jit
def route_backward_kernel(
    logits_ptr, expert_ptr, dweight_ptr, daffinity_ptr, dlogits_ptr, n_rows, n_tokens, stride_ln, scale,
    E: tl.constexpr, A: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """n_tokens: of a sequence."""
    row_N = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_N = row_N < n_rows
    logits_N = logits_ptr + row_N * stride_ln
    choice_A = tl.arange(0, BLOCK_A)
    inside_NA = inside_N[:, None] & (choice_A < A)[None, :]
    pair_NA = row_N[:, None] * A + choice_A[None, :]
    expert_NA = tl.load(expert_ptr + pair_NA, inside_NA, other=0)
    share_NA = shares(tl.load(logits_N[:, None] + expert_NA, inside_NA, other=float("-inf")), inside_N)
    dweight_NA = tl.load(dweight_ptr + pair_NA, inside_NA, other=0.0)
    dlog_NA = (dweight_NA - tl.sum(dweight_NA * share_NA, 1)[:, None]) * share_NA * scale

    expert_E = tl.arange(0, BLOCK_E)
    inside_NE = inside_N[:, None] & (expert_E < E)[None, :]
    x_NE = tl.load(logits_N[:, None] + expert_E[None, :], inside_NE, other=float("-inf"))
    from_NE = daffinity_ptr + (row_N // n_tokens)[:, None] * E + expert_E[None, :]
    daffinity_NE = tl.load(from_NE, inside_NE, other=0.0)
    share_NE = shares(x_NE, inside_N)
    mean_N = tl.sum(daffinity_NE * share_NE, 1)
    dlog_NE = (daffinity_NE - mean_N[:, None]) * share_NE / n_tokens
    for a in range(A):
        expert_N = tl.load(expert_ptr + row_N * A + a, inside_N, other=0)
        slope_N = tl.sum(tl.where(choice_A[None, :] == a, dlog_NA, 0.0), 1)
        dlog_NE += tl.where(expert_E[None, :] == expert_N[:, None], slope_N[:, None], 0.0)
    # The derivative of log sigmoid: 1 - sigmoid would lose its digits where the sigmoid nears 1.
    tl.store(dlogits_ptr + row_N[:, None] * E + expert_E[None, :], dlog_NE * sigmoid(-x_NE), inside_NE)


@operator("route_backward")
def route_backward_op(
    logits_NE: Tensor, expert_NA: Tensor, dweight_NA: Tensor, daffinity_BE: Tensor, route_scale: float
) -> Tensor:
    """The logits' gradient (N, E) from those of the weights (N, A) and of the affinities (B, E)."""
    (n, e), a = logits_NE.shape, expert_NA.shape[1]
    dlogits_NE = logits_NE.new_empty(n, e)
    block = next_power_of_2(e)
    chosen = TABLE.choose("route_backward", machine_of(logits_NE.device), E=block)
    launch(
        route_backward_kernel, (ceil_div(n, chosen.blocks["BLOCK_N"]),), logits_NE, expert_NA, dweight_NA.contiguous(),
        daffinity_BE.contiguous(), dlogits_NE, n, n // daffinity_BE.shape[0], logits_NE.stride(0), route_scale,
        E=e, A=a, BLOCK_A=next_power_of_2(a), BLOCK_E=block, **chosen.options,
    )  # fmt: skip
    return dlogits_NE


@route_backward_op.register_fake
def _(logits_NE: Tensor, expert_NA: Tensor, dweight_NA: Tensor, daffinity_BE: Tensor, route_scale: float) -> Tensor:
    return logits_NE.new_empty(logits_NE.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    ctx.save_for_backward(inputs[0], output[2])
    ctx.route_scale, ctx.shapes = inputs[6], [each.shape for each in output[:2]]
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)  # or zeros are made for what is only counted


def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    logits_NE, expert_NA = ctx.saved_tensors
    given = (logits_NE.new_zeros(shape) if g is None else g for g, shape in zip(gradients[:2], ctx.shapes, strict=True))
    dlogits_NE = route_backward_op(logits_NE, expert_NA, *given, ctx.route_scale)
    return dlogits_NE, *(None,) * 7


route_op.register_autograd(_backward, setup_context=_keep)
