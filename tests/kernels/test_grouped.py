"""Products of one matrix an expert, and the gradient of the matrices, against float64 loops over the experts."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import triton
import triton.language as tl
from numerics import DEVICE, assert_close, assert_compiles, each_pair, poisoned, random, strided
from torch import Tensor
from torch.nn import functional as F

from ablate.kernels.grouped_product import (
    grouped_linear,
    grouped_linear_op,
    grouped_product,
    grouped_product_op,
    grouped_swiglu_backward_op,
    grouped_swiglu_op,
)
from ablate.kernels.grouped_weight_gradient import grouped_weight_gradient, grouped_weight_gradient_op
from ablate.kernels.table import Configuration, forced
from ablate.kernels.tiles import expert_of_tile, tile_at, tiles_of_experts

DTYPES = (torch.float32, torch.bfloat16)
# Rows of each expert: none, one, less than a tile, more than one, all.
ROUTINGS = ((1, 63, 0, 129), (0, 0, 100), (65, 1, 1, 1, 0, 7), (257,))
# More experts than fill a power of two, tiles of every shape, columns of tiles that do not fill a group.
SMALL = Configuration(
    blocks={"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": 64, "GROUP_M": 3, "PROGRAMS": 5, "FLATTEN": True}
)


def ends(sizes: tuple[int, ...]) -> Tensor:
    return torch.tensor(sizes).cumsum(0).to(DEVICE, torch.int32)


def experts(sizes: tuple[int, ...]) -> list[slice]:
    edges = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    return [slice(start, end) for start, end in pairwise(edges)]


def rows(n_pairs: int, n_rows: int) -> Tensor:
    return torch.randint(n_rows, (n_pairs,), generator=torch.Generator().manual_seed(7)).to(DEVICE, torch.int32)


def product(x: Tensor, weight: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The float64 loop: x[p] weight[e]^T."""
    return torch.cat([x[at].double() @ w.double().T for at, w in zip(experts(sizes), weight, strict=True)])


@triton.jit
def cover_kernel(
    offsets_ptr, count_ptr, expert_ptr, n_experts, n_tiles, width,
    BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, GROUP_M: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    start_E, end_E, first_E, last_E, m_tiles = tiles_of_experts(offsets_ptr, n_experts, BLOCK_M, BLOCK_E)
    for number in tl.range(tl.program_id(0), m_tiles * n_tiles, PROGRAMS, flatten=True):
        m_tile, n_tile = tile_at(number, m_tiles, n_tiles, GROUP_M)
        expert, start, end = expert_of_tile(m_tile, start_E, end_E, first_E, last_E, BLOCK_M, BLOCK_E)
        row_M = start + tl.arange(0, BLOCK_M)
        tl.atomic_add(count_ptr + row_M * width + n_tile, 1, row_M < end)
        tl.store(expert_ptr + row_M, expert, row_M < end)


@each_pair({"sizes": [*ROUTINGS, (0, 16, 17, 0, 0)], "group": [1, 2, 5], "n_tiles": [1, 2, 3]})
def test_every_tile_is_found_once_and_nothing_beyond(sizes: tuple[int, ...], group: int, n_tiles: int) -> None:
    n_pairs, n_experts, block = sum(sizes), len(sizes), 64
    width = n_tiles + 8  # tiles beyond the last would show there
    count = torch.zeros(n_pairs, width, dtype=torch.int32, device=DEVICE)
    expert = torch.full((n_pairs,), -1, dtype=torch.int32, device=DEVICE)
    padded, programs = triton.next_power_of_2(n_experts), 3
    cover_kernel[(programs,)](
        ends(sizes), count, expert, n_experts, n_tiles, width, block, padded, group, programs
    )  # fmt: skip
    assert (count[:, :n_tiles] == 1).all()
    assert not count[:, n_tiles:].any()
    assert expert.tolist() == [e for e, size in enumerate(sizes) for _ in range(size)]


@each_pair({"sizes": ROUTINGS, "gathered": [False, True], "transposed": [False, True], "dtype": DTYPES})
def test_product(sizes: tuple[int, ...], gathered: bool, transposed: bool, dtype: torch.dtype) -> None:
    n_pairs, o, i = sum(sizes), 72, 40
    weight = random(len(sizes), o, i, dtype=dtype, seed=1)
    x = random(50 if gathered else n_pairs, o if transposed else i, dtype=dtype)
    token_of_row_P = rows(n_pairs, 50) if gathered else None
    with poisoned():
        y = grouped_product(x, weight, ends(sizes), token_of_row_P, transposed)
    expected = product(
        x if token_of_row_P is None else x[token_of_row_P.long()], weight.mT if transposed else weight, sizes
    )
    assert y.dtype == dtype
    assert_close(y, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", ROUTINGS, ids=str)
def test_linear_and_its_gradients(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = random(sum(sizes), 40, dtype=dtype), random(len(sizes), 72, 40, dtype=dtype, seed=1)
    check_linear(x, weight, random(sum(sizes), 72, dtype=dtype, seed=2), sizes, dtype)


@pytest.mark.parametrize("gradient", ["transposed", "one number", "odd rows"])
def test_rows_of_wider_tensors_and_gradients_of_any_strides(gradient: str) -> None:
    sizes = (30, 0, 36)
    g = {
        "transposed": random(24, 66, seed=2).T,
        "one number": random(1, 1, seed=2).expand(66, 24),
        "odd rows": random(66, 25, seed=2)[:, 1:],
    }[gradient]
    weight = random(3, 48, 16, seed=1)[:, ::2]
    check_linear(strided(random(66, 16)), weight, g, sizes, torch.float32)


def check_linear(x: Tensor, weight: Tensor, g: Tensor, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    with poisoned():
        y = grouped_linear(x, weight, ends(sizes))
        found = torch.autograd.grad(y, (x, weight), g)
    wide_x, wide_weight = (t.detach().double().requires_grad_() for t in (x, weight))
    expected = product(wide_x, wide_weight, sizes)
    wanted = torch.autograd.grad(expected, (wide_x, wide_weight), g.double())
    assert_close(y, expected, dtype, "y")
    for name, a, b, like in zip("xw", found, wanted, (x, weight), strict=True):
        assert a.dtype == like.dtype
        assert_close(a, b, dtype, name)
    for at, dw in zip(experts(sizes), found[1], strict=True):
        assert at.start < at.stop or not dw.any()  # zeros were written


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_the_product_of_the_library(dtype: torch.dtype) -> None:
    sizes = (40, 0, 25)
    x, weight = random(65, 64, dtype=dtype), random(3, 32, 64, dtype=dtype, seed=1)
    assert_close(grouped_linear(x, weight, ends(sizes)), F.grouped_mm(x, weight.mT, offs=ends(sizes)), dtype)


@pytest.mark.parametrize(
    ("dtype", "out"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)],
    ids=str,
)
@pytest.mark.parametrize("gathered", ["g", "x", "both"])
def test_gradient_of_matrices_from_gathered_rows(gathered: str, out: torch.dtype, dtype: torch.dtype) -> None:
    sizes, n_rows = (1, 63, 0, 129), 50
    n_pairs = sum(sizes)
    of_g = rows(n_pairs, n_rows) if gathered != "x" else None
    of_x = rows(n_pairs, n_rows).flip(0) if gathered != "g" else None
    g = random(n_pairs if of_g is None else n_rows, 72, dtype=dtype)
    x = random(n_pairs if of_x is None else n_rows, 104, dtype=dtype, seed=1)
    with poisoned():
        dw = grouped_weight_gradient(g, x, ends(sizes), g_rows_P=of_g, x_rows_P=of_x, dtype=out)
    wide_g, wide_x = (
        (t if r is None else t[r.long()]).double() for t, r in ((g, of_g), (x, of_x))
    )  # fmt: skip
    assert dw.dtype == out
    # Operands are taken as they are: of a float32 result nothing was rounded.
    assert_close(dw, torch.stack([wide_g[at].T @ wide_x[at] for at in experts(sizes)]), out)


@pytest.mark.parametrize("gathered", [False, True], ids=["sorted", "gathered"])
def test_tiles_of_another_shape_give_the_same(gathered: bool) -> None:
    sizes = (1, 63, 0, 129, 5, 0, 0, 30, 33)
    n_pairs = sum(sizes)
    x, weight = random(60 if gathered else n_pairs, 24), random(len(sizes), 40, 24, seed=1)
    token_of_row_P = rows(n_pairs, 60) if gathered else None
    wide = x if token_of_row_P is None else x[token_of_row_P.long()]
    with forced("gathered_product" if gathered else "grouped_product", SMALL), poisoned():
        y = grouped_product(x, weight, ends(sizes), token_of_row_P)
    assert_close(y, product(wide, weight, sizes), torch.float32)
    with forced("gathered_weight_gradient" if gathered else "grouped_weight_gradient", SMALL), poisoned():
        dw = grouped_weight_gradient(y, x, ends(sizes), x_rows_P=token_of_row_P)
    expected = torch.stack([y[at].double().T @ wide[at].double() for at in experts(sizes)])
    assert_close(dw, expected, torch.float32)


@pytest.mark.filterwarnings("ignore:.*invalid value:RuntimeWarning")  # of NumPy, in the interpreter
def test_an_expert_does_not_see_what_is_not_finite_in_its_neighbours() -> None:
    sizes = (33, 20, 15)
    x, weight, g = random(68, 16), random(3, 24, 16, seed=1), random(68, 24, seed=2)
    x[33:53], g[33:53], weight[1] = float("nan"), float("inf"), float("nan")
    assert grouped_product(x, weight, ends(sizes))[[*range(33), *range(53, 68)]].isfinite().all()
    assert grouped_product(g, weight, ends(sizes), None, True)[[*range(33), *range(53, 68)]].isfinite().all()
    assert grouped_weight_gradient(g, x, ends(sizes))[[0, 2]].isfinite().all()
    assert (
        grouped_weight_gradient(g, x, ends(sizes), x_rows_P=torch.arange(68, device=DEVICE, dtype=torch.int32))[[0, 2]]
        .isfinite()
        .all()
    )


def test_hidden_rows_do_not_depend_on_what_is_kept() -> None:
    sizes, tokens = (30, 0, 40), 20
    x, gate_up = random(tokens, 16), random(3, 80, 16, seed=1)
    token_of_row_P = rows(70, tokens)
    with poisoned():
        h, kept = grouped_swiglu_op(x, gate_up, ends(sizes), token_of_row_P, True)
        again, nothing = grouped_swiglu_op(x, gate_up, ends(sizes), token_of_row_P, False)
    assert torch.equal(h, again)
    assert not nothing.numel()
    assert_close(kept, product(x[token_of_row_P.long()], gate_up, sizes), torch.float32)
    gate, up = product(x[token_of_row_P.long()], gate_up, sizes).chunk(2, dim=-1)
    assert_close(h, F.silu(gate) * up, torch.float32)


def test_rows_beyond_the_last_expert_are_not_written() -> None:
    offsets, n_pairs = ends((3, 0, 57)), 70
    x, weight, down = random(n_pairs, 16), random(3, 48, 16, seed=1), random(3, 16, 24, seed=2)
    token_of_row_P, pair = rows(n_pairs, n_pairs), random(n_pairs, seed=3)
    with poisoned():
        h, gate_up = grouped_swiglu_op(x, weight, offsets, token_of_row_P, True)
        outputs = [
            grouped_product(x, weight, offsets),
            grouped_product(x, weight, offsets, token_of_row_P),
            h,
            gate_up,
            *grouped_swiglu_backward_op(x, down, offsets, token_of_row_P, gate_up, pair),
        ]
    for y in outputs:
        assert y[:60].isfinite().all()
        assert y[60:].isnan().all()


def test_no_rows() -> None:
    x, weight = torch.empty(0, 8, device=DEVICE).requires_grad_(), random(3, 16, 8).requires_grad_()
    with poisoned():
        y = grouped_linear(x, weight, ends((0, 0, 0)))
        dx, dw = torch.autograd.grad(y.sum(), (x, weight))
    assert (y.shape, dx.shape) == ((0, 16), (0, 8))
    assert torch.equal(dw, torch.zeros_like(weight))


def test_only_what_is_asked_for() -> None:
    x, weight = random(6, 8), random(2, 16, 8, seed=1).requires_grad_()
    grouped_linear(x, weight, ends((2, 4))).sum().backward()
    assert weight.grad is not None
    assert grouped_linear(x.requires_grad_(), weight.detach(), ends((2, 4))).sum().backward() is None
    assert x.grad is not None


def test_the_operators_are_some_that_compile() -> None:
    offsets, token_of_row_P = ends((3, 0, 4)), rows(7, 5)
    x, weight = random(7, 8).requires_grad_(), random(3, 16, 8, seed=1).requires_grad_()
    torch.library.opcheck(grouped_linear_op, (x, weight, offsets))
    few, kept, pair = random(5, 8), random(7, 16, seed=3), random(7, seed=2)
    torch.library.opcheck(grouped_product_op, (few, weight.detach(), offsets, token_of_row_P, False))
    torch.library.opcheck(grouped_swiglu_op, (few, weight.detach(), offsets, token_of_row_P, True))
    down = random(3, 8, 8, seed=4)
    torch.library.opcheck(grouped_swiglu_backward_op, (few, down, offsets, token_of_row_P, kept, pair))
    torch.library.opcheck(grouped_weight_gradient_op, (few, kept, offsets, token_of_row_P, None, torch.float32))
    assert_compiles(lambda a, b: grouped_linear(a, b, offsets), x, weight)


def test_the_same_from_run_to_run() -> None:
    sizes = (1, 63, 0, 129)
    x, weight = random(193, 40).requires_grad_(), random(4, 24, 40, seed=1).requires_grad_()

    def once() -> list[Tensor]:
        y = grouped_linear(x, weight, ends(sizes))
        return [y, *torch.autograd.grad(y, (x, weight), torch.ones_like(y))]

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


@pytest.mark.parametrize(
    ("x", "weight", "offsets", "sentence"),
    [
        (torch.zeros(4, 8).half(), torch.zeros(2, 8, 8).half(), ends((2, 2)), "float16.*must be one of"),
        (torch.zeros(4, 8), torch.zeros(2, 8, 8).bfloat16(), ends((2, 2)), "bfloat16.*must be one of torch.float32"),
        (torch.zeros(8, 4).T, torch.zeros(2, 8, 8), ends((2, 2)), "last axis must be contiguous"),
        (torch.zeros(4, 8), torch.zeros(2, 8, 8).mT, ends((2, 2)), "last axis must be contiguous"),
        (torch.zeros(4, 6), torch.zeros(2, 8, 6), ends((2, 2)), "8 x 6 numbers.*multiples of 4 .16 bytes"),
        (torch.zeros(4, 8).bfloat16(), torch.zeros(2, 12, 8).bfloat16(), ends((2, 2)), "12 x 8 numbers.*of 8 "),
        (torch.zeros(4, 16)[:, 1:9], torch.zeros(2, 8, 8), ends((2, 2)), "starts at byte 4 modulo 16"),
        (torch.zeros(4, 8), torch.zeros(2, 8, 12), ends((2, 2)), r"shape \(4, 8\); it must be \(4, 12\)"),
        (torch.zeros(4, 8), torch.zeros(8, 8), ends((2, 2)), r"shape|axes"),
        (torch.zeros(4, 8), torch.zeros(2, 8, 8), ends((1, 1, 2)), r"offsets_E has shape \(3,\)"),
        (torch.zeros(4, 8), torch.zeros(2, 8, 8), torch.tensor([2, 4]), "offsets_E is torch.int64"),
    ],
)
def test_what_is_refused(x: Tensor, weight: Tensor, offsets: Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        grouped_linear(x.to(DEVICE), weight.to(DEVICE), offsets.to(DEVICE))


def test_what_is_refused_of_gradients() -> None:
    g, x, offsets = random(4, 8), random(4, 8), ends((2, 2))
    for refused, sentence in (
        (lambda: grouped_weight_gradient(g, x.bfloat16(), offsets), "must be one of torch.float32"),
        (lambda: grouped_weight_gradient(g, x, offsets, dtype=torch.bfloat16), "asked for in torch.bfloat16"),
        (lambda: grouped_weight_gradient(g, random(4, 6), offsets), "the input starts at byte 0 modulo 16"),
        (lambda: grouped_weight_gradient(g, x[:3], offsets), r"shape \(3, 8\); it must be \(4, 8\)"),
        (lambda: grouped_weight_gradient(g, x, offsets, x_rows_P=rows(3, 4)), r"shape \(3,\); it must be \(4,\)"),
        (lambda: grouped_product(x, random(2, 8, 8), offsets, rows(3, 4).long()), "token_of_row_P is torch.int64"),
    ):
        with pytest.raises(ValueError, match=sentence):
            refused()
