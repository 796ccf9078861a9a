"""Linear maps: in ordinary arithmetic, and with all three products of training in E4M3."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ablate.components.fp8.emulation import Recipe, fp8_product
from ablate.components.fp8.observation import Observation
from ablate.kernels.weight_gradients import linear_in_both
from ablate.model.modules import RMSNorm, unquantised
from ablate.model.step_weights import of_step
from ablate.spec.backends import EMULATED, require_concrete

if TYPE_CHECKING:
    from ablate.components.fp8.kernel.normed import Normed


class Linear(nn.Linear):
    """The ordinary linear map, without bias."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear_in_both(F.linear, x, of_step(self.weight))

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
        if self.backend == "triton":
            from ablate.kernels.grouped_product import grouped_linear

            x_NI, weight = autocast(x_NI, of_step(self.weight))
            return grouped_linear(x_NI, weight, offsets_E)
        product = grouped_reference if self.backend == "reference" else grouped_library
        return linear_in_both(lambda x, weight: product(x, weight, offsets_E), x_NI, of_step(self.weight))

    def experts(self, down: GroupedLinear) -> Callable[..., Tensor] | None:
        """Routed experts whole, where kernels do without a copy of the rows that are sorted by expert; else None."""
        if self.backend != "triton":
            return None
        from ablate.kernels.routed_experts import routed_experts

        def whole(x_ND: Tensor, weight_NA: Tensor, *plan: Tensor) -> Tensor:
            x_ND, gate_up, down_weight = autocast(x_ND, of_step(self.weight), of_step(down.weight))
            token_of_row_P, row_of_choice_NA, offsets_E = plan
            return routed_experts(x_ND, weight_NA, gate_up, down_weight, token_of_row_P, row_of_choice_NA, offsets_E)

        return whole


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In the dtype of autocast, where it is on: what it does to the operands of torch's own products."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(t.to(torch.get_autocast_dtype(kind)) for t in tensors)


def grouped_library(x_NI: Tensor, weight_EOI: Tensor, offsets_E: Tensor) -> Tensor:
    """Torch's grouped product, in the dtype of autocast."""
    x_NI, weight_EOI = autocast(x_NI, weight_EOI)
    return F.grouped_mm(x_NI, weight_EOI.transpose(-2, -1), offs=offsets_E)


def grouped_reference(x_NI: Tensor, weight_EOI: Tensor, offsets_E: Tensor) -> Tensor:
    """The loop over groups. Every row must lie before the last offset."""
    ends = offsets_E.tolist()
    assert ends[-1] == x_NI.shape[0]
    groups = zip([0, *ends[:-1]], ends, weight_EOI, strict=True)
    return torch.cat([F.linear(x_NI[start:end], weight) for start, end, weight in groups])


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
        if self.backend in EMULATED:
            y_NO = fp8_product(x_NI, self.weight, None, self.recipe, self.observation)
        else:
            from ablate.components.fp8.kernel.linear import fp8_linear

            (x_NI,) = autocast(x_NI)
            y_NO = fp8_linear(
                x_NI, self.weight, power_of_two=self.recipe.power_of_two_scales, backend=self.products(x_NI)
            )
            watch(self.observation, self.recipe, x_NI, self.weight, y_NO)
        return y_NO.view(*x.shape[:-1], y_NO.shape[-1])

    def _of_normed(self, x: Normed) -> Tensor:
        from ablate.components.fp8.kernel.normed import fp8_linear_of_normed

        power_of_two, products = self.recipe.power_of_two_scales, self.products(x.value)
        y = fp8_linear_of_normed(x, self.weight, power_of_two=power_of_two, backend=products)
        watch(self.observation, self.recipe, x.value.flatten(0, -2), self.weight, y)
        return y

    def feed_forward(self, down: Fp8Linear) -> Callable[[Tensor], Tensor] | None:
        """The maps and SwiGLU between them, which quantises what it computes without writing it."""
        if self.backend in EMULATED or self.observation is not None:
            return None
        from ablate.components.fp8.kernel.feed_forward import fp8_feed_forward

        def whole(x: Any) -> Tensor:
            (x_NI,) = autocast(unquantised(x).reshape(-1, x.shape[-1]))
            library = "library" == self.products(x_NI) == down.products(x_NI)
            power_of_two = self.recipe.power_of_two_scales
            y_NO = fp8_feed_forward(x_NI, self.weight, down.weight, power_of_two=power_of_two, library=library)
            return y_NO.view(*x.shape[:-1], y_NO.shape[-1])

        return whole

    def products(self, x: Tensor) -> str:
        """What multiplies: with backend `library` cuBLAS where it takes these sizes, and the kernels where not."""
        if self.backend != "library":
            return self.backend
        from ablate.components.fp8.kernel.product import machine_of, supported

        n_outputs, n_inputs = self.weight.shape
        obstacle = supported(machine_of(x.device), n_inputs, n_outputs, x.numel() // x.shape[-1])
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
        if self.backend in EMULATED:
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
        if self.backend in EMULATED or self.observation is not None:
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
