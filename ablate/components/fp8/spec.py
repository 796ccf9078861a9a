"""Nodes of the linear slot: which arithmetic the matrix products use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ablate.component import setting
from ablate.spec import FORBID_UNKNOWN, LinearNode, Spec

if TYPE_CHECKING:
    from torch import nn

    from ablate.components.fp8.module import Recipe

BACKENDS = ("emulated",)


@dataclass(frozen=True, kw_only=True, slots=True)
class StandardLinear:
    """Products in the run's own dtype: the alternative `bf16` of `fp8`.

    Backend of the grouped product: `library` is torch.nn.functional.grouped_mm, `reference` a loop over groups.
    """

    kind: Literal["standard"] = "standard"
    backend: Literal["library", "reference"] = "library"

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN

    def linear(self, in_features: int, out_features: int) -> nn.Module:
        from torch import nn

        return nn.Linear(in_features, out_features, bias=False)

    def grouped(self, n_groups: int, in_features: int, out_features: int) -> nn.Module:
        from ablate.components.fp8.module import GroupedLinear

        return GroupedLinear(n_groups, in_features, out_features, backend=self.backend)

    def precision(self, dtype: str, device: str) -> Any:
        from lightning.pytorch.plugins import MixedPrecision, Precision

        return Precision() if dtype == "float32" else MixedPrecision("bf16-mixed", device)

    def callbacks(self) -> list[Any]:
        return []

    def speed_evidence(self) -> Literal["measured", "emulated"]:
        return "measured"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8Linear:
    """Products of E4M3 numbers, summed in float32 (arXiv:2412.19437, section 3.3).

    `blockwise`: activations and gradients share a scale in 1 x 128 tiles, weights in 128 x 128 blocks.
    `tensorwise`: one scale a tensor. Backend `emulated` multiplies the dequantised numbers, on any device: exact
    numerics, at less than the speed of ordinary products.
    """

    kind: Literal["fp8"] = "fp8"
    recipe: Literal["blockwise", "tensorwise"] = "blockwise"
    power_of_two_scales: bool = False  # scales rounded up to 2^n instead of amax / 448
    backend: Literal["emulated"] = "emulated"

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN

    def __post_init__(self) -> None:
        check_backend("linear.backend", self.backend)

    def linear(self, in_features: int, out_features: int) -> nn.Module:
        from ablate.components.fp8.module import Fp8Linear as Module

        return Module(in_features, out_features, recipe=self._recipe())

    def grouped(self, n_groups: int, in_features: int, out_features: int) -> nn.Module:
        from ablate.components.fp8.module import Fp8GroupedLinear as Module

        return Module(n_groups, in_features, out_features, recipe=self._recipe())

    def precision(self, dtype: str, device: str) -> Any:
        from ablate.components.fp8.precision import Fp8MixedPrecision, Fp8Precision

        return Fp8Precision(self._recipe()) if dtype == "float32" else Fp8MixedPrecision(self._recipe(), device)

    def callbacks(self) -> list[Any]:
        from ablate.components.fp8.callback import UnderflowMonitor

        return [UnderflowMonitor()]

    def speed_evidence(self) -> Literal["measured", "emulated"]:
        """What a run's seconds are worth: those of an emulation say nothing of FP8's speed."""
        return "emulated"

    def _recipe(self) -> Recipe:
        from ablate.components.fp8.module import Recipe

        return Recipe(self.recipe, self.power_of_two_scales)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a preset says of FP8, for the recipe of DeepSeek-V3 and for one scale a tensor alike."""

    power_of_two_scales: bool = False
    backend: Literal["emulated"] = "emulated"

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN

    def __post_init__(self) -> None:
        check_backend("fp8.backend", self.backend)


def check_backend(path: str, backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"{path} is {backend!r}; there are: {', '.join(BACKENDS)}")


def on(spec: Spec) -> Spec:
    return _fill(spec, _fp8(spec, "blockwise"))


def off(spec: Spec, alternative: str) -> Spec:
    return _fill(spec, StandardLinear() if alternative == "bf16" else _fp8(spec, "tensorwise"))


def _fp8(spec: Spec, recipe: Literal["blockwise", "tensorwise"]) -> Fp8Linear:
    settings: Settings = setting(spec, "fp8")
    return Fp8Linear(recipe=recipe, power_of_two_scales=settings.power_of_two_scales, backend=settings.backend)


def _fill(spec: Spec, linear: LinearNode) -> Spec:
    return replace(spec, model=replace(spec.model, linear=linear))
