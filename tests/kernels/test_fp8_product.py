"""Products of quantised matrices against float64 products of the same numbers; quantised by the emulation."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from numerics import DEVICE, assert_close, assert_compiles, poisoned, random
from torch import Tensor

from ablate.components.fp8 import reference
from ablate.components.fp8.kernel import grouped, layout, product
from ablate.components.fp8.quantise import Blocks, Strips, quantise
from ablate.kernels.table import Configuration, forced
from ablate.spec.machine import Machine

# Tensor cores keep about 14 bits of a sum of FP8 products, which lie between these two formats.
SUMS = torch.float32 if DEVICE == "cpu" else torch.bfloat16
SHAPES = [(1, 63, 100), (129, 100, 257), (257, 129, 63), (128, 128, 128)]  # tokens, inputs, outputs
SEGMENTS = [[5, 0, 130, 257], [0, 0, 0, 200], [300, 0, 0, 0], [1, 1, 1, 1], [128, 128, 129, 0]]
NAN = 0x7F  # in E4M3


def unwritten(*shape: int) -> Tensor:
    return torch.full(shape, NAN, dtype=torch.uint8, device=DEVICE).view(layout.E4M3)


def put(target: Tensor, values: Tensor) -> None:
    target.view(torch.uint8).copy_(values.view(torch.uint8))


def rows(x_NK: Tensor, power_of_two: bool) -> tuple[Tensor, Tensor]:
    """Values and scales of tiles of 1 x 128; NaN in what pads the rows."""
    n, k = x_NK.shape
    values = unwritten(n, layout.padded(k))[:, :k]
    scales = x_NK.new_empty(layout.ceil_div(k, 128), n, dtype=torch.float32)
    for block, part in enumerate(x_NK.split(128, 1)):
        q = quantise(part, Strips(-1), power_of_two_scales=power_of_two)
        put(values[:, 128 * block : 128 * block + part.shape[1]], q.values)
        scales[block] = q.scales[0][:, 0]
    return values, scales


def columns(x_NK: Tensor, power_of_two: bool, sizes: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """Values and scales of tiles of 128 x 1, transposed; NaN in tiles that no expert has."""
    n, k = x_NK.shape
    s = layout.token_tiles(n, None if sizes is None else len(sizes))
    values, scales = unwritten(k, s * 128), torch.full((s, k), torch.nan, device=DEVICE)
    parts = [part for rows in x_NK.split(sizes or [n]) if len(rows) for part in rows.split(128)]
    for tile, part in enumerate(parts):
        q = quantise(part, Strips(-2), power_of_two_scales=power_of_two)
        values.view(torch.uint8)[:, 128 * tile : 128 * tile + 128] = 0
        put(values[:, 128 * tile : 128 * tile + len(part)], q.values.T)
        scales[tile] = q.scales[0][0]
    return values, scales


def weight(w: Tensor, power_of_two: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Values, transposed values and scales of tiles of 128 x 128; NaN in what pads the rows."""
    if w.ndim == 3:
        each = [weight(matrix, power_of_two) for matrix in w]
        (e, o, i) = w.shape
        values, transposed = unwritten(e, o, layout.padded(i))[..., :i], unwritten(e, i, layout.padded(o))[..., :o]
        for target, found in zip((values, transposed), zip(*(m[:2] for m in each), strict=True), strict=True):
            for a, b in zip(target, found, strict=True):
                put(a, b)
        return values, transposed, torch.stack([m[2] for m in each])
    o, i = w.shape
    values, transposed = unwritten(o, layout.padded(i))[:, :i], unwritten(i, layout.padded(o))[:, :o]
    scales = w.new_empty(layout.ceil_div(o, 128), layout.ceil_div(i, 128), dtype=torch.float32)
    for row in range(0, o, 128):
        for column in range(0, i, 128):
            q = quantise(w[row : row + 128, column : column + 128], Blocks(0), power_of_two_scales=power_of_two)
            put(values[row : row + 128, column : column + 128], q.values)
            put(transposed[column : column + 128, row : row + 128], q.values.T)
            scales[row // 128, column // 128] = q.scales[0].reshape(())
    return values, transposed, scales


def operands(n: int, i: int, o: int, *, experts: int | None = None) -> SimpleNamespace:
    """Numbers whose tiles differ in size, so that a scale of the wrong tile is not close."""
    leading = () if experts is None else (experts,)
    x, g, w = random(n, i), random(n, o, seed=1), random(*leading, o, i, seed=2)
    for t in (x, g, w):
        t *= torch.exp2(random(*t.shape[:-1], 1, seed=3)) * torch.exp2(random(t.shape[-1], seed=4))
    return SimpleNamespace(x=x, g=g, w=w)


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_both_gradients(shape: tuple[int, int, int], power_of_two: bool) -> None:
    t = operands(*shape)
    w, transposed, scales = weight(t.w, power_of_two)
    with poisoned():
        y = product.product(*rows(t.x, power_of_two), w, scales, torch.float32)
        dx = product.product(*rows(t.g, power_of_two), transposed, scales.T, torch.float32)
        dw = product.weight_gradient(*columns(t.g, power_of_two), *columns(t.x, power_of_two), torch.float32)
    expected = reference.products(t.x.cpu(), t.w.cpu(), t.g.cpu(), power_of_two_scales=power_of_two)
    for name, found, wanted in zip(("y", "dx", "dw"), (y, dx, dw), expected, strict=True):
        assert_close(found, wanted, SUMS, name)


@pytest.mark.parametrize("block_m", [16, 128])
def test_other_tiles_and_more_programs_than_tiles(block_m: int) -> None:
    t = operands(200, 130, 150)
    blocks = {"BLOCK_M": block_m, "BLOCK_N": 128, "GROUP_M": 3, "PROGRAMS": 5, "FLATTEN": True}
    with poisoned(), forced("fp8_product", Configuration(blocks=blocks)):
        y = product.product(*rows(t.x, False), *weight(t.w, False)[::2], torch.float32)
    assert_close(y, reference.products(t.x.cpu(), t.w.cpu(), t.g.cpu())[0], SUMS)


def test_output_in_bfloat16() -> None:
    t = operands(70, 130, 150)
    y = product.product(*rows(t.x, True), *weight(t.w, True)[::2], torch.bfloat16)
    assert y.dtype == torch.bfloat16
    assert_close(y, reference.products(t.x.cpu(), t.w.cpu(), t.g.cpu(), power_of_two_scales=True)[0], torch.bfloat16)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, of inf times 0 in the interpreter
def test_a_number_that_is_not_finite_shows_in_its_row_and_block_alone() -> None:
    t = operands(70, 130, 150)
    t.x[3, 7], t.w[140, 1] = torch.nan, torch.inf
    y = product.product(*rows(t.x, False), *weight(t.w, False)[::2], torch.float32)
    finite = y.isfinite()
    assert not finite[3].any()
    assert not finite[:, 128:].any()
    assert finite[:3, :128].all()
    assert finite[4:, :128].all()


def test_no_tokens() -> None:
    t = operands(0, 130, 150)
    w, _, scales = weight(t.w, False)
    assert product.product(*rows(t.x, False), w, scales, torch.float32).shape == (0, 150)
    with poisoned():
        dw = product.weight_gradient(*columns(t.g, False), *columns(t.x, False), torch.float32)
    assert torch.equal(dw, torch.zeros(150, 130, device=DEVICE))


def grouped_reference(t: SimpleNamespace, sizes: Sequence[int], power_of_two: bool) -> list[Tensor]:
    parts = [
        reference.products(x.cpu(), w.cpu(), g.cpu(), power_of_two_scales=power_of_two)
        for x, w, g in zip(t.x.split(sizes), t.w, t.g.split(sizes), strict=True)
    ]
    y, dx, dw = zip(*parts, strict=True)
    return [torch.cat(y), torch.cat(dx), torch.stack(dw)]


def ends(sizes: Sequence[int]) -> Tensor:
    return torch.tensor(sizes, device=DEVICE).cumsum(0).to(torch.int32)


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("sizes", SEGMENTS, ids=str)
def test_experts(sizes: list[int], power_of_two: bool) -> None:
    t, offsets = operands(sum(sizes), 100, 130, experts=4), ends(sizes)
    w, transposed, scales = weight(t.w, power_of_two)
    g_columns, x_columns = (columns(each, power_of_two, sizes) for each in (t.g, t.x))
    with poisoned():
        y = grouped.grouped_product(*rows(t.x, power_of_two), w, scales, offsets, None, torch.float32)
        dx = grouped.grouped_product(*rows(t.g, power_of_two), transposed, scales.mT, offsets, None, torch.float32)
        dw = grouped.grouped_weight_gradient(*g_columns, *x_columns, offsets, torch.float32)
    for name, found, wanted in zip("yxw", (y, dx, dw), grouped_reference(t, sizes, power_of_two), strict=True):
        assert_close(found, wanted, SUMS, name)
    for size, gradient in zip(sizes, dw, strict=True):
        assert size or torch.equal(gradient, torch.zeros_like(gradient))


def test_experts_of_several_tiles_each_way_and_a_number_that_is_no_power_of_two() -> None:
    sizes = [70, 0, 131]
    t = operands(sum(sizes), 257, 140, experts=3)
    with poisoned():
        y = grouped.grouped_product(*rows(t.x, False), *weight(t.w, False)[::2], ends(sizes), None, torch.bfloat16)
        dw = grouped.grouped_weight_gradient(
            *columns(t.g, False, sizes), *columns(t.x, False, sizes), ends(sizes), torch.bfloat16
        )
    expected = grouped_reference(t, sizes, False)
    assert_close(y, expected[0], torch.bfloat16, "y")
    assert_close(dw, expected[2], torch.bfloat16, "dw")


@pytest.mark.parametrize("sizes", [[5, 0, 130, 60], [0, 0, 0, 90]], ids=str)
@pytest.mark.parametrize("n", [1, 40])
def test_gathered_rows(sizes: list[int], n: int) -> None:
    """Rows are taken several times, in any order; the rows' padding and rows that nobody takes are NaN."""
    t = operands(n, 130, 100, experts=4)
    values, scales = rows(t.x, False)
    taken = torch.randint(0, max(1, n - 1), (sum(sizes),), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    if n > 1:
        values.view(torch.uint8)[-1] = NAN
        scales[:, -1] = torch.nan
    with poisoned():
        y = grouped.grouped_product(
            values, scales, *weight(t.w, False)[::2], ends(sizes), taken.to(torch.int32), torch.float32
        )
    whole = SimpleNamespace(x=t.x[taken], w=t.w, g=random(sum(sizes), 100))
    assert_close(y, grouped_reference(whole, sizes, False)[0], SUMS)


def test_experts_without_any_row() -> None:
    t, offsets = operands(0, 100, 130, experts=4), ends([0, 0, 0, 0])
    y = grouped.grouped_product(*rows(t.x, False), *weight(t.w, False)[::2], offsets, None, torch.float32)
    assert y.shape == (0, 130)
    nothing = [*columns(t.g, False, [0] * 4), *columns(t.x, False, [0] * 4)]
    assert nothing[0].shape == (130, 4 * 128)
    with poisoned():
        dw = grouped.grouped_weight_gradient(*nothing, offsets, torch.float32)
    assert torch.equal(dw, torch.zeros(4, 130, 100, device=DEVICE))


def test_the_operators_are_ones_that_compile() -> None:
    t, offsets = operands(9, 32, 24, experts=2), ends([4, 5])
    dense = (*rows(t.x, False), *weight(t.w[0], False)[::2], torch.float32)
    experts = (*rows(t.x, False), *weight(t.w, False)[::2], offsets, None, torch.float32)
    both = (*columns(t.g, False), *columns(t.x, False))
    segments = (*columns(t.g, False, [4, 5]), *columns(t.x, False, [4, 5]))
    for operator, arguments in (
        (product.product, dense),
        (product.weight_gradient, (*both, torch.float32)),
        (grouped.grouped_product, experts),
        (grouped.grouped_weight_gradient, (*segments, offsets, torch.float32)),
    ):
        # The check of the schema compares arguments before and after, which torch cannot do with FP8.
        torch.library.opcheck(operator, arguments, test_utils="test_faketensor")
    assert_compiles(lambda *a: product.product(*a, torch.float32), *dense[:-1])
    assert_compiles(lambda *a: grouped.grouped_product(*a, None, torch.float32), *experts[:-2])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({0: torch.zeros(4, 32)}, "float32; it must be one of torch.float8_e4m3fn"),
        ({0: torch.zeros(4, 31).to(layout.E4M3)}, r"must be \(M, K\) and \(N, K\)"),
        ({0: torch.zeros(4, 33).to(layout.E4M3)[:, :32]}, "multiples of 16"),
        ({1: torch.zeros(1, 5)}, r"scales of the first matrix.*\(1, 5\); it must be \(1, 4\)"),
        ({3: torch.zeros(2, 1)}, "scales of the second matrix"),
        ({3: torch.zeros(1, 1, dtype=torch.float64)}, "float64; they must be torch.float32"),
        ({4: torch.float16}, "output is to be torch.float16"),
    ],
)
def test_what_is_refused(change: dict[int, object], sentence: str) -> None:
    e4m3 = torch.zeros(4, 32, device=DEVICE).to(layout.E4M3)
    arguments: list[object] = [e4m3, torch.zeros(1, 4), e4m3.clone(), torch.zeros(1, 1), torch.float32]
    for index, argument in change.items():
        arguments[index] = argument
    with pytest.raises(ValueError, match=sentence):
        product.product(*(a.to(DEVICE) if isinstance(a, Tensor) else a for a in arguments))


def test_what_experts_refuse() -> None:
    t = operands(9, 32, 24, experts=2)
    a, w = rows(t.x, False), weight(t.w, False)[::2]
    with pytest.raises(ValueError, match=r"offsets_E has shape \(3,\); it must be \(2,\)"):
        grouped.grouped_product(*a, *w, ends([4, 5, 0]), None, torch.float32)
    with pytest.raises(ValueError, match=r"int64; it must be one of torch\.int32"):
        grouped.grouped_product(*a, *w, ends([4, 5]).long(), None, torch.float32)
    apart = unwritten(4, 24, 32)[::2]
    with pytest.raises(ValueError, match="matrix must follow matrix without a gap"):
        grouped.grouped_product(*a, apart, w[1], ends([4, 5]), None, torch.float32)


def test_where_the_library_can_be_used() -> None:
    assert "CUDA device" in product.library_obstacle(Machine(kind="cpu"))
    assert "9.0" in product.library_obstacle(Machine(kind="cuda", name="x", capability=(10, 0)))
    hopper = Machine(kind="cuda", name="NVIDIA H200", capability=(9, 0))
    assert "multiples of 16" in product.supported(hopper, 100, 128, 64)
    for rows in (129, 2047):
        assert f"there are {rows} rows" in product.supported(hopper, 96, 128, rows)
    assert product.supported(hopper, 96, 128, 2044) == product.library_obstacle(hopper)


@pytest.mark.skipif(product.library_obstacle(product.machine_of(torch.device(DEVICE))) != "", reason="needs cuBLAS")
@pytest.mark.parametrize("shape", [(132, 144, 272), (256, 128, 128), (16, 640, 512), (2047, 128, 128)], ids=str)
def test_the_library_gives_the_same(shape: tuple[int, int, int]) -> None:
    if obstacle := product.supported(product.machine_of(torch.device(DEVICE)), shape[1], shape[2], shape[0]):
        pytest.skip(obstacle)
    t = operands(*shape)
    w, transposed, scales = weight(t.w, False)
    x_rows, g_rows, both = rows(t.x, False), rows(t.g, False), (*columns(t.g, False), *columns(t.x, False))
    expected = reference.products(t.x.cpu(), t.w.cpu(), t.g.cpu())
    found = (
        product.library_product(*x_rows, w, scales, torch.float32),
        product.library_product(*g_rows, transposed, scales.T, torch.float32),
        product.library_weight_gradient(*both, torch.float32),
    )
    for name, a, b in zip(("y", "dx", "dw"), found, expected, strict=True):
        assert_close(a, b, SUMS, name)
