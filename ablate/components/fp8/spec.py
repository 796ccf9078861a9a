"""Nodes of the linear slot: which arithmetic the matrix products use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ablate.components.component import setting
from ablate.spec.backends import EMULATED, Backend, without_compiler, without_cuda, without_triton
from ablate.spec.cost import DTYPE_BYTES, FP32_BYTES
from ablate.spec.machine import Machine
from ablate.spec.nodes import LinearNode, NormNode
from ablate.spec.ranges import checked
from ablate.spec.run import Spec

if TYPE_CHECKING:
    from torch import nn

    from ablate.components.fp8.emulation import Recipe

TILE_CHANNELS = 128  # of a row, that share a scale where it travels
RecipeName = Literal["blockwise", "tensorwise", "gradient-blocks"]
Fp8Backend = Literal["auto", "compiled", "emulated", "library", "triton"]


def read_by_products(norm: Any) -> Any:
    """A norm whose output only products read, which then take it in the dtype of autocast, converted once for all."""
    norm.product_dtype = True
    return norm


@checked("linear")
@dataclass(frozen=True, kw_only=True, slots=True)
class StandardLinear:
    """Products in the run's own dtype: the alternative `bf16` of `fp8`.

    Backend of the grouped product: `library` is torch.nn.functional.grouped_mm, `reference` a loop over groups,
    `triton` this program's kernels. Ordinary products are always torch's.
    """

    kind: Literal["standard"] = "standard"
    backend: Backend = "auto"

    def obstacles(self, machine: Machine, dtype: str) -> Mapping[str, str]:
        return {"library": "", "reference": "", "triton": without_triton(machine)}

    def linear(self, in_features: int, out_features: int) -> nn.Module:
        from ablate.components.fp8.module import Linear

        return Linear(in_features, out_features)

    def norm(self, dim: int, node: NormNode) -> nn.Module:
        return read_by_products(node.build(dim))

    def grouped(self, n_groups: int, in_features: int, out_features: int) -> nn.Module:
        from ablate.components.fp8.module import GroupedLinear

        return GroupedLinear(n_groups, in_features, out_features, backend=self.backend)

    def precision(self, dtype: str, device: str) -> Any:
        from lightning.pytorch.plugins import MixedPrecision, Precision

        return Precision() if dtype == "float32" else MixedPrecision("bf16-mixed", device)

    def wire(self) -> None:
        return None

    def wire_bytes(self, dim: int, dtype: str) -> int:
        return dim * DTYPE_BYTES[dtype]

    def shares_scales(self) -> Literal[""]:
        return ""

    def callbacks(self) -> list[Any]:
        return []

    def speed_evidence(self) -> Literal["measured", "emulated"]:
        return "measured"


@checked("linear")
@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8Linear:
    """Products of E4M3 numbers, summed in float32 (arXiv:2412.19437, section 3.3).

    `blockwise`: activations and gradients share a scale in 1 x 128 tiles, weights in 128 x 128 blocks.
    `tensorwise`: one scale a tensor. `gradient-blocks`: gradients in 128 x 128 blocks too, with which DeepSeek saw a
    16 B model diverge (appendix B.2). Backend `emulated` multiplies the dequantised numbers, on any device: exact
    numerics, at less than the speed of ordinary products; `compiled` is the same in every element with quantising in C,
    on a processor. On Hopper `triton` is this program's kernels, and `library`
    multiplies by cuBLAS what cuBLAS takes (no experts, sizes in multiples of 128) and the rest as `triton` does.
    """

    kind: Literal["fp8"] = "fp8"
    recipe: RecipeName = "blockwise"
    power_of_two_scales: bool = False  # scales rounded up to 2^n instead of amax / 448
    backend: Fp8Backend = "auto"

    def obstacles(self, machine: Machine, dtype: str) -> Mapping[str, str]:
        """`library` before `triton`: cuBLAS multiplies where it takes the sizes (`Fp8Linear.products` in module.py)."""
        kernels = without_triton(machine)
        if self.recipe != "blockwise":
            kernels = kernels or f"the recipe {self.recipe} has no kernel here: leave the backend auto, or emulated"
        obstacles = {"library": without_cuda(machine) or kernels, "triton": kernels}
        emulations = {"compiled": without_compiler(machine, dtype), "emulated": ""}
        # In the interpreter kernels can run and are nobody's choice.
        return obstacles | emulations if machine.kind == "cuda" else emulations | obstacles

    def linear(self, in_features: int, out_features: int) -> nn.Module:
        from ablate.components.fp8.module import Fp8Linear as Module

        return Module(in_features, out_features, recipe=self._recipe(), backend=self.backend)

    def norm(self, dim: int, node: NormNode) -> nn.Module:
        """Where both norm and products are kernels, one that quantises what it writes."""
        from ablate.components.fp8.module import Fp8Norm

        fused = node.backend == "triton" and self.backend not in EMULATED
        return Fp8Norm(dim, node.eps, self._recipe()) if fused else read_by_products(node.build(dim))

    def grouped(self, n_groups: int, in_features: int, out_features: int) -> nn.Module:
        from ablate.components.fp8.module import Fp8GroupedLinear as Module

        return Module(n_groups, in_features, out_features, recipe=self._recipe(), backend=self.backend)

    def precision(self, dtype: str, device: str) -> Any:
        from ablate.components.fp8.precision import Fp8MixedPrecision, Fp8Precision

        return Fp8Precision(self._recipe()) if dtype == "float32" else Fp8MixedPrecision(self._recipe(), device)

    def wire(self) -> Any:
        """E4M3 and the scales of its 1 x 128 tiles. The other recipes' scales are not a row's own: sent as they are."""
        if self.recipe != "blockwise":
            return None
        from ablate.components.fp8.wire import Fp8Wire

        return Fp8Wire(self.power_of_two_scales)

    def wire_bytes(self, dim: int, dtype: str) -> int:
        if self.recipe != "blockwise":
            return dim * DTYPE_BYTES[dtype]
        return dim + FP32_BYTES * -(-dim // TILE_CHANNELS)

    def shares_scales(self) -> Literal["tiles", "tensor"]:
        """Weight gradients of all recipes but `tensorwise` have tiles of 128 tokens."""
        return "tensor" if self.recipe == "tensorwise" else "tiles"

    def callbacks(self) -> list[Any]:
        from ablate.components.fp8.callback import UnderflowMonitor

        return [UnderflowMonitor()]

    def speed_evidence(self) -> Literal["measured", "emulated"]:
        """What a run's seconds are worth: those of an emulation say nothing of FP8's speed."""
        return "emulated" if self.backend in EMULATED else "measured"

    def _recipe(self) -> Recipe:
        from ablate.components.fp8.emulation import Recipe

        return Recipe(self.recipe, self.power_of_two_scales, compiled=self.backend == "compiled")


@checked("fp8")
@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a preset says of FP8, for all recipes alike."""

    power_of_two_scales: bool = False
    backend: Fp8Backend = "auto"


def on(spec: Spec) -> Spec:
    return _fill(spec, _fp8(spec, "blockwise"))


def off(spec: Spec, alternative: str) -> Spec:
    recipes: dict[str, RecipeName] = {"tensorwise": "tensorwise", "gradient-blocks": "gradient-blocks"}
    return _fill(spec, StandardLinear() if alternative == "bf16" else _fp8(spec, recipes[alternative]))


def _fp8(spec: Spec, recipe: RecipeName) -> Fp8Linear:
    settings: Settings = setting(spec, "fp8")
    return Fp8Linear(recipe=recipe, power_of_two_scales=settings.power_of_two_scales, backend=settings.backend)


def _fill(spec: Spec, linear: LinearNode) -> Spec:
    return replace(spec, model=replace(spec.model, linear=linear))
