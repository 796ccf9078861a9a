"""Blockwise FP8 by the definition: every tile in a loop, E4M3 by its table, products in float64.

Scales and quotients are float32, as they are part of the format: they decide which E4M3 number is nearest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ablate.components.fp8.spec import Fp8Linear, StandardLinear

TILE = 128


def table() -> Tensor:
    """The finite E4M3 numbers that are not negative, by code: 4 bits of exponent (bias 7), 3 of mantissa."""
    numbers = []
    for code in range(127):
        exponent, mantissa = divmod(code, 8)
        numbers.append(mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    return torch.tensor(numbers, dtype=torch.float64)


def nearest(x: Tensor) -> Tensor:
    """The nearest E4M3 number of each element, of two the one with the even code; float64."""
    magnitude, numbers = x.double().abs().contiguous(), table()
    below = (torch.searchsorted(numbers, magnitude, right=True) - 1).clamp_max(126)
    above = (below + 1).clamp_max(126)
    down, up = magnitude - numbers[below], numbers[above] - magnitude
    code = torch.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    return numbers[code] * torch.where(x < 0, -1.0, 1.0)


def quantised(x: Tensor, rows: Sequence[int], columns: Sequence[int], *, power_of_two_scales: bool = False) -> Tensor:
    """The numbers that x stands for after quantisation, float64; tiles end at `rows` and `columns`."""
    result = torch.empty_like(x, dtype=torch.float64)
    for top, bottom in zip([0, *rows], rows, strict=False):
        for left, right in zip([0, *columns], columns, strict=False):
            tile = x[top:bottom, left:right].float()
            scale = (tile.abs().max() / 448).clamp_min(2.0**-126)
            if power_of_two_scales:
                scale = 2.0 ** scale.double().log2().ceil()
            result[top:bottom, left:right] = nearest(tile / scale.float()) * scale.double()
    return result


def ends(length: int, size: int = TILE) -> list[int]:
    """Where the tiles along an axis end."""
    return [min(start + size, length) for start in range(0, length, size)]


def products(
    x_NI: Tensor, weight_OI: Tensor, g_NO: Tensor, *, gradient_blocks: bool = False, **scales: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and the gradients of x and of the weight (arXiv:2412.19437, figures 6 and 7); of an expert, from its rows.

    gradient_blocks: gradients in 128 x 128 blocks in both of their products (appendix B.2).
    """
    (n, i), o = x_NI.shape, g_NO.shape[1]
    each_N, each_I, each_O = ends(n, 1), ends(i, 1), ends(o, 1)
    w = quantised(weight_OI, ends(o), ends(i), **scales)
    y = quantised(x_NI, each_N, ends(i), **scales) @ w.T
    rows, columns = (ends(n), ends(o)) if gradient_blocks else (each_N, each_O)
    x_gradient = quantised(g_NO, rows, ends(o), **scales) @ w
    w_gradient = quantised(g_NO, ends(n), columns, **scales).T @ quantised(x_NI, ends(n), each_I, **scales)
    return y, x_gradient, w_gradient


def tensorwise_products(x_NI: Tensor, weight_OI: Tensor, g_NO: Tensor, **scales: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The same with one scale a tensor, shared by both products it takes part in."""
    x, w, g = (quantised(t, [t.shape[0]], [t.shape[1]], **scales) for t in (x_NI, weight_OI, g_NO))
    return x @ w.T, g @ w, g.T @ x


Products = tuple[Tensor, Tensor, Tensor]  # y, and the gradients of x and of the weight


def fp8(node: Fp8Linear, x_NI: Tensor, weight_EOI: Tensor, g_NO: Tensor, sizes: Sequence[int]) -> Products:
    """One matrix for each segment of rows, by the node's recipe; a whole tensor's scale is that of all segments."""
    scales = {"power_of_two_scales": node.power_of_two_scales}
    if node.recipe != "tensorwise":
        scales["gradient_blocks"] = node.recipe == "gradient-blocks"
        parts = zip(x_NI.split(sizes), weight_EOI, g_NO.split(sizes), strict=True)
        return joined([products(x, w, g, **scales) for x, w, g in parts])
    x, g = (quantised(t, [t.shape[0]], [t.shape[1]], **scales) for t in (x_NI, g_NO))
    w = [quantised(matrix, [matrix.shape[0]], [matrix.shape[1]], **scales) for matrix in weight_EOI]
    return exact(x, torch.stack(w), g, sizes)


def standard(node: StandardLinear, x_NI: Tensor, weight_EOI: Tensor, g_NO: Tensor, sizes: Sequence[int]) -> Products:
    """The same of ordinary products."""
    return exact(x_NI, weight_EOI, g_NO, sizes)


def exact(x_NI: Tensor, weight_EOI: Tensor, g_NO: Tensor, sizes: Sequence[int]) -> Products:
    """The three products of every segment in float64."""
    parts = zip(x_NI.double().split(sizes), weight_EOI.double(), g_NO.double().split(sizes), strict=True)
    return joined([(x @ w.T, g @ w, g.T @ x) for x, w, g in parts])


def joined(parts: Sequence[Products]) -> Products:
    """Rows of the segments behind each other, and the gradients of their matrices stacked."""
    y, x_gradient, w_gradient = zip(*parts, strict=True)
    return torch.cat(y), torch.cat(x_gradient), torch.stack(w_gradient)


REFERENCES = {"fp8": fp8, "standard": standard}
