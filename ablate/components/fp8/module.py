"""Linear maps: in ordinary arithmetic, and with all three products of training in E4M3."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ablate.components.fp8.observation import Observation
from ablate.components.fp8.quantise import TILE, Blocks, Quantised, SegmentStrips, Strips, Tiling, quantise
from ablate.errors import nearest
from ablate.model.modules import RMSNorm, unquantised
from ablate.spec.backends import require_concrete


class Linear(nn.Linear):
    """The ordinary linear map, without bias."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def feed_forward(self, down: Linear) -> Callable[[Tensor], Tensor] | None:
        """This map, SwiGLU and `down` as one operation, where there is one; else None."""
        return None


class GroupedLinear(nn.Module):
    """One matrix per group of rows. x_NI (rows sorted by group), offsets_E (int32 ends of groups) -> y_NO."""

    def __init__(self, n_groups: int, in_features: int, out_features: int, *, backend: str) -> None:
        super().__init__()
        require_concrete(backend)
        if backend == "library" and (in_features % 8 or out_features % 8):
            # torch asks for rows of a multiple of 16 bytes: 8 numbers of bfloat16.
            raise ValueError(
                f"an expert's matrix is {out_features} x {in_features}; the grouped product needs multiples of 8, "
                "so give dim and the expert's hidden width such sizes, or set linear.backend to reference"
            )
        self.backend = backend
        self.weight = nn.Parameter(torch.empty(n_groups, out_features, in_features))

    def forward(self, x_NI: Tensor, offsets_E: Tensor) -> Tensor:
        if self.backend == "reference":
            return grouped_reference(x_NI, self.weight, offsets_E)
        x_NI, weight = autocast(x_NI, self.weight)
        if self.backend == "triton":
            from ablate.kernels.grouped_product import grouped_linear

            return grouped_linear(x_NI, weight, offsets_E)
        return F.grouped_mm(x_NI, weight.transpose(-2, -1), offs=offsets_E)

    def experts(self, down: GroupedLinear) -> Callable[..., Tensor] | None:
        """Routed experts whole, where kernels do without a copy of the rows that are sorted by expert; else None."""
        if self.backend != "triton":
            return None
        from ablate.kernels.routed_experts import routed_experts

        def whole(x_ND: Tensor, weight_NA: Tensor, *plan: Tensor) -> Tensor:
            x_ND, gate_up, down_weight = autocast(x_ND, self.weight, down.weight)
            token_of_row_P, row_of_choice_NA, offsets_E = plan
            return routed_experts(x_ND, weight_NA, gate_up, down_weight, token_of_row_P, row_of_choice_NA, offsets_E)

        return whole


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In the dtype of autocast, where it is on: what it does to the operands of torch's own products."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(t.to(torch.get_autocast_dtype(kind)) for t in tensors)


def grouped_reference(x_NI: Tensor, weight_EOI: Tensor, offsets_E: Tensor) -> Tensor:
    """The loop over groups. Every row must lie before the last offset."""
    ends = offsets_E.tolist()
    assert ends[-1] == x_NI.shape[0]
    groups = zip([0, *ends[:-1]], ends, weight_EOI, strict=True)
    return torch.cat([F.linear(x_NI[start:end], weight) for start, end, weight in groups])


if TYPE_CHECKING:
    from ablate.components.fp8.kernel.normed import Normed


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

    def __post_init__(self) -> None:
        if self.name not in RECIPES:
            raise ValueError(f"the fp8 recipe is {self.name!r}; {nearest(self.name, RECIPES)}")

    @property
    def rows(self) -> Tiling:
        """Of activations, which are multiplied along their last axis."""
        return Blocks(0) if self.name == "tensorwise" else Strips(-1)

    @property
    def weight(self) -> Tiling:
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

    def quantise(self, x: Tensor, tiling: Tiling) -> Quantised:
        return quantise(x, tiling, power_of_two_scales=self.power_of_two_scales)

    def again(self, x: Tensor, quantised: Quantised, tiling: Tiling) -> Quantised:
        """x in another tiling; what is there already if the tiling is the same."""
        return quantised if tiling == quantised.tiling else self.quantise(x, tiling)


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
        x, w = recipe.quantise(x_NI, recipe.rows), recipe.quantise(weight, recipe.weight)
        if how.observation is not None:
            how.observation.add("activation", x_NI, x)
            how.observation.add("weight", weight, w)
        if how.differentiable:
            columns = recipe.again(x_NI, x, recipe.columns(how.sizes, x_NI.device))
            ctx.how, ctx.dtypes, ctx.tilings = how, (x_NI.dtype, weight.dtype), (columns.tiling, w.tiling)
            ctx.n_scales = len(columns.scales)
            ctx.save_for_backward(columns.values, *columns.scales, w.values, *w.scales)
        return _product(x.dequantise(), w.dequantise(), how.sizes).to(x_NI.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (g_NO,), how, saved, n = gradients, ctx.how, ctx.saved_tensors, ctx.n_scales
        recipe = how.recipe
        columns = Quantised(saved[0], saved[1 : n + 1], ctx.tilings[0])
        w = Quantised(saved[n + 1], saved[n + 2 :], ctx.tilings[1])
        g = recipe.quantise(g_NO, recipe.gradient(how.sizes, g_NO.device))
        if how.observation is not None:
            how.observation.add("gradient", g_NO, g)
        x_gradient = w_gradient = None
        with _exactly_float32(g_NO.device):
            if ctx.needs_input_grad[0]:
                x_gradient = _product(g.dequantise(), w.dequantise().mT, how.sizes).to(ctx.dtypes[0])
            if ctx.needs_input_grad[1]:
                g = recipe.again(g_NO, g, g.tiling if recipe.name == "gradient-blocks" else columns.tiling)
                w_gradient = _weight_gradient(g.dequantise(), columns.dequantise(), how.sizes).to(ctx.dtypes[1])
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


class Fp8Linear(nn.Module):
    """nn.Linear without bias, in E4M3: same parameter, and so the same initial value, as the ordinary one."""

    def __init__(self, in_features: int, out_features: int, *, recipe: Recipe, backend: str) -> None:
        super().__init__()
        self.recipe, self.backend = recipe, require_concrete(backend)
        self.observation: Observation | None = None
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: Any) -> Tensor:
        """x: (..., I), or what an `Fp8Norm` gives."""
        if not isinstance(x, Tensor):
            return self._of_normed(x)
        x_NI = x.reshape(-1, x.shape[-1])
        if self.backend == "emulated":
            y_NO = fp8_product(x_NI, self.weight, None, self.recipe, self.observation)
        else:
            from ablate.components.fp8.kernel.linear import fp8_linear

            (x_NI,) = autocast(x_NI)
            y_NO = fp8_linear(
                x_NI, self.weight, power_of_two=self.recipe.power_of_two_scales, backend=self.products(x.device)
            )
            watch(self.observation, self.recipe, x_NI, self.weight, y_NO)
        return y_NO.view(*x.shape[:-1], -1)

    def _of_normed(self, x: Normed) -> Tensor:
        from ablate.components.fp8.kernel.normed import fp8_linear_of_normed

        power_of_two, products = self.recipe.power_of_two_scales, self.products(x.value.device)
        y = fp8_linear_of_normed(x, self.weight, power_of_two=power_of_two, backend=products)
        watch(self.observation, self.recipe, x.value.flatten(0, -2), self.weight, y)
        return y

    def feed_forward(self, down: Fp8Linear) -> Callable[[Tensor], Tensor] | None:
        """The maps and SwiGLU between them, which quantises what it computes without writing it."""
        if self.backend == "emulated" or self.observation is not None:
            return None
        from ablate.components.fp8.kernel.feed_forward import fp8_feed_forward

        def whole(x: Any) -> Tensor:
            (x_NI,) = autocast(unquantised(x).reshape(-1, x.shape[-1]))
            library = "library" == self.products(x_NI.device) == down.products(x_NI.device)
            power_of_two = self.recipe.power_of_two_scales
            y_NO = fp8_feed_forward(x_NI, self.weight, down.weight, power_of_two=power_of_two, library=library)
            return y_NO.view(*x.shape[:-1], -1)

        return whole

    def products(self, device: torch.device) -> str:
        """What multiplies: with backend `library` cuBLAS where it takes these sizes, and the kernels where not."""
        if self.backend != "library":
            return self.backend
        from ablate.components.fp8.kernel.product import machine_of, supported

        obstacle = supported(machine_of(device), self.weight.shape[1], self.weight.shape[0])
        return "triton" if obstacle else "library"


class Fp8Norm(RMSNorm):
    """A norm between the residual stream and linear maps in E4M3, which it leaves its output quantised for."""

    def __init__(self, dim: int, eps: float, recipe: Recipe) -> None:
        super().__init__(dim, eps, "triton")
        self.recipe = recipe

    def forward(self, x: Tensor) -> Any:  # a Normed
        from ablate.components.fp8.kernel.normed import fp8_norm

        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        power_of_two = self.recipe.power_of_two_scales
        return fp8_norm(x, self.weight, self.epsilon, power_of_two=power_of_two, dtype=dtype)


class Fp8GroupedLinear(nn.Module):
    """GroupedLinear in E4M3. Every row must lie before the last offset."""

    def __init__(self, n_groups: int, in_features: int, out_features: int, *, recipe: Recipe, backend: str) -> None:
        super().__init__()
        self.recipe, self.backend = recipe, require_concrete(backend)
        self.observation: Observation | None = None
        self.weight = nn.Parameter(torch.empty(n_groups, out_features, in_features))

    def forward(self, x_NI: Tensor, offsets_E: Tensor) -> Tensor:
        if self.backend == "emulated":
            ends = offsets_E.tolist()
            assert ends[-1] == x_NI.shape[0]
            sizes = tuple(end - start for start, end in zip([0, *ends[:-1]], ends, strict=True))
            return fp8_product(x_NI, self.weight, sizes, self.recipe, self.observation)
        from ablate.components.fp8.kernel.linear import fp8_grouped_linear

        (x_NI,) = autocast(x_NI)
        y_NO = fp8_grouped_linear(x_NI, self.weight, offsets_E, power_of_two=self.recipe.power_of_two_scales)
        watch(self.observation, self.recipe, x_NI, self.weight, y_NO)
        return y_NO

    def experts(self, down: Fp8GroupedLinear) -> Callable[..., Tensor] | None:
        """Routed experts whole, quantised before their rows are sorted; None where products are emulated or watched."""
        if self.backend == "emulated" or self.observation is not None:
            return None
        from ablate.components.fp8.kernel.feed_forward import fp8_routed_experts

        def whole(x_ND: Tensor, weight_NA: Tensor, *plan: Tensor) -> Tensor:
            (x_ND,) = autocast(x_ND)
            token_of_row_P, row_of_choice_NA, offsets_E = plan
            return fp8_routed_experts(
                x_ND, weight_NA, self.weight, down.weight, token_of_row_P, row_of_choice_NA, offsets_E,
                power_of_two=self.recipe.power_of_two_scales,
            )  # fmt: skip

        return whole


def watch(observation: Observation | None, recipe: Recipe, x: Tensor, weight: Tensor, y: Tensor) -> None:
    """Let an observation see what the kernels quantise: the same numbers, quantised once more by torch."""
    if observation is None:
        return
    observation.add("activation", x.detach(), recipe.quantise(x.detach(), recipe.rows))
    observation.add("weight", weight.detach(), recipe.quantise(weight.detach(), recipe.weight))
    if y.requires_grad:
        y.register_hook(lambda g: observation.add("gradient", g, recipe.quantise(g, recipe.rows)))
