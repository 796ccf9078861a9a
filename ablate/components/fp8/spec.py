"""Nodes of the linear slot: which arithmetic the matrix products use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ablate.spec import FORBID_UNKNOWN, Spec

if TYPE_CHECKING:
    from torch import nn


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


def off(spec: Spec, alternative: str) -> Spec:
    return replace(spec, model=replace(spec.model, linear=StandardLinear()))
