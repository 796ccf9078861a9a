"""Products of E4M3 matrices on any device: quantised, and multiplied as the float32 numbers that they stand for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ablate.components.fp8.observation import Observation
from ablate.components.fp8.quantise import TILE, Blocks, Quantised, SegmentStrips, Strips, Tiling
from ablate.errors import nearest
from ablate.kernels.weight_gradients import weight_gradient


@lru_cache(maxsize=2)
def _segment_strips(sizes: tuple[int, ...], device: torch.device, *, square: bool = False) -> SegmentStrips:
    """The tilings of the last sizes asked for: both maps of a layer's experts have the same."""
    return SegmentStrips(sizes, device, square=square)


RECIPES = ("blockwise", "tensorwise", "gradient-blocks")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Which elements share a scale, as in DeepSeek-V3 (`blockwise`) or one scale for a whole tensor (`tensorwise`).

    `gradient-blocks`: as in DeepSeek-V3 but for output gradients, which have the weights' 128 x 128 in both products.
    """

    name: str
    power_of_two_scales: bool
    compiled: bool = False  # quantised by C on the processor, with the same result, instead of torch's operations

    def __post_init__(self) -> None:
        if self.name not in RECIPES:
            raise ValueError(f"the fp8 recipe is {self.name!r}; {nearest(self.name, RECIPES)}")

    @property
    def rows(self) -> Tiling:
        """Of activations, which are multiplied along their last axis."""
        return Blocks(0) if self.name == "tensorwise" else Strips(-1)

    @property
    def weight(self) -> Tiling:
        """Of matrices, in all their products."""
        return Blocks(0 if self.name == "tensorwise" else TILE)

    def gradient(self, sizes: tuple[int, ...] | None, device: torch.device) -> Tiling:
        """Of output gradients for the input gradient, in which they are multiplied along their last axis."""
        if self.name != "gradient-blocks":
            return self.rows
        return Blocks(TILE) if sizes is None else _segment_strips(sizes, device, square=True)

    def columns(self, sizes: tuple[int, ...] | None, device: torch.device) -> Tiling:
        """Of what is multiplied along the tokens, for the weight gradient; `sizes` of the experts' segments."""
        if self.name == "tensorwise":
            return Blocks(0)
        return Strips(-2) if sizes is None else _segment_strips(sizes, device)

    @property
    def kind(self) -> type[Quantised]:
        """What holds quantised numbers."""
        if not self.compiled:
            return Quantised
        from ablate.components.fp8.compiled import CompiledQuantised

        return CompiledQuantised

    def quantise(self, x: Tensor, tiling: Tiling) -> Quantised:
        """x in E4M3 with these tiles, its scales rounded up to powers of two where the recipe says so."""
        return self.kind.of(x, tiling, power_of_two_scales=self.power_of_two_scales)

    def rounded(self, x: Tensor, tiling: Tiling) -> Tensor:
        """x as the numbers that its quantised form stands for."""
        if not self.compiled:
            return self.quantise(x, tiling).dequantise()
        from ablate.components.fp8.compiled import round_trip

        return round_trip(x, tiling, power_of_two_scales=self.power_of_two_scales)


@dataclass(frozen=True, slots=True)
class Pass:
    """What a product is told besides its operands."""

    recipe: Recipe
    sizes: tuple[int, ...] | None  # rows of each expert, one after another; None for a single matrix
    observation: Observation | None
    differentiable: bool  # whether a backward pass may follow


class Fp8Product(torch.autograd.Function):
    """y = x w^T with output, input gradient and weight gradient as products of E4M3 numbers, summed in float32.

    Emulated by products of dequantised float32 numbers. That is the same arithmetic up to float32 rounding: two
    E4M3 significands of 4 bits multiply to 8 bits, exact in float32, so that sum_k (q_k s)(r_k t) differs from
    s t sum_k q_k r_k only by the rounding of s and t onto q and r (2^-24 each, nothing if they are powers of two)
    and by the order of the float32 sum. What is kept for the backward pass is E4M3 and scales: a byte an element.
    """

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight: Tensor, how: Pass) -> Tensor:
        """`weight`: (O, I), or (E, O, I) with sizes."""
        recipe = how.recipe
        w = recipe.quantise(weight, recipe.weight)
        if how.observation is not None:
            how.observation.add("activation", x_NI, recipe.quantise(x_NI, recipe.rows))
            how.observation.add("weight", weight, w)
        if how.differentiable:
            columns = recipe.quantise(x_NI, recipe.columns(how.sizes, x_NI.device))
            ctx.how, ctx.dtypes, ctx.tilings = how, (x_NI.dtype, weight.dtype), (columns.tiling, w.tiling)
            ctx.n_scales, ctx.weight = len(columns.scales), weight
            ctx.save_for_backward(columns.values, *columns.scales, w.values, *w.scales)
        return _product(recipe.rounded(x_NI, recipe.rows), w.dequantise(), how.sizes).to(x_NI.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (g_NO,), how, saved, n = gradients, ctx.how, ctx.saved_tensors, ctx.n_scales
        recipe = how.recipe
        columns = recipe.kind(saved[0], saved[1 : n + 1], ctx.tilings[0])
        w = recipe.kind(saved[n + 1], saved[n + 2 :], ctx.tilings[1])
        x_dtype, w_dtype = ctx.dtypes
        of_gradient = recipe.gradient(how.sizes, g_NO.device)
        if how.observation is not None:
            how.observation.add("gradient", g_NO, recipe.quantise(g_NO, of_gradient))

        def of_weight() -> Tensor:
            with _exactly_float32(g_NO.device):
                g = recipe.rounded(g_NO, of_gradient if recipe.name == "gradient-blocks" else columns.tiling)
                return _weight_gradient(g, columns.dequantise(), how.sizes).to(w_dtype)

        x_gradient = w_gradient = None
        if ctx.needs_input_grad[0]:
            with _exactly_float32(g_NO.device):
                g = recipe.rounded(g_NO, of_gradient)
                x_gradient = _product(g, w.dequantise().mT, how.sizes).to(x_dtype)
        if ctx.needs_input_grad[1]:
            w_gradient = weight_gradient(ctx.weight, of_weight)
        return x_gradient, w_gradient, None


def _product(x_NI: Tensor, weight: Tensor, sizes: tuple[int, ...] | None) -> Tensor:
    """x w^T, each segment of x with its own matrix."""
    if sizes is None:
        return x_NI @ weight.T
    y_NO = x_NI.new_empty(x_NI.shape[0], weight.shape[1])
    for x, w, y in zip(x_NI.split(sizes), weight.mT.unbind(), y_NO.split(sizes), strict=True):
        torch.mm(x, w, out=y)
    return y_NO


def _weight_gradient(g_NO: Tensor, x_NI: Tensor, sizes: tuple[int, ...] | None) -> Tensor:
    """g^T x, of each segment."""
    if sizes is None:
        return g_NO.T @ x_NI
    gradient_EOI = x_NI.new_empty(len(sizes), g_NO.shape[1], x_NI.shape[1])
    for g, x, gradient in zip(g_NO.split(sizes), x_NI.split(sizes), gradient_EOI.unbind(), strict=True):
        torch.mm(g.T, x, out=gradient)
    return gradient_EOI


def _exactly_float32(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast would round the dequantised numbers to bfloat16. Entered only where it is on: it costs 10 us."""
    enabled = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if enabled else nullcontext()


def fp8_product(
    x_NI: Tensor, weight: Tensor, sizes: tuple[int, ...] | None, recipe: Recipe, observation: Observation | None
) -> Tensor:
    """Under autocast the input is rounded to its dtype and the output is of that dtype, as of any linear map."""
    device = x_NI.device
    if torch.is_autocast_enabled(device.type):
        x_NI = x_NI.to(torch.get_autocast_dtype(device.type))
    # Function.forward cannot ask for this itself: gradients are always off inside it.
    differentiable = torch.is_grad_enabled() and (x_NI.requires_grad or weight.requires_grad)
    with _exactly_float32(device):
        return Fp8Product.apply(x_NI, weight, Pass(recipe, sizes, observation, differentiable))
