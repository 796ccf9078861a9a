"""Lightning precision plugins of an FP8 run: ordinary ones that refuse a model whose maps are not all in FP8."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.plugins import MixedPrecision, Precision
from torch import nn

from ablate.components.fp8.emulation import Recipe
from ablate.components.fp8.module import Fp8GroupedLinear, Fp8Linear

# Matrices that stay in the run's dtype or float32 (arXiv:2412.19437, section 3.3.1), by the name of their module.
KEPT = ("embedding", "head", "router")


def check(model: nn.Module, recipe: Recipe) -> None:
    """ValueError unless exactly the trained matrices outside KEPT are in FP8, all with this recipe."""
    for path, module in model.named_modules():
        kept, fp8 = path.rpartition(".")[2] in KEPT, isinstance(module, Fp8Linear | Fp8GroupedLinear)
        trained = [name for name, p in module.named_parameters(recurse=False) if p.requires_grad and p.ndim > 1]
        if trained and fp8 == kept:
            fault = "is in FP8 and must not be" if fp8 else "is not in FP8 and must be"
            raise ValueError(
                f"{path}.{trained[0]} {fault}: fp8 covers every matrix but those of {', '.join(KEPT)}; "
                "make linear maps with the model's linear node, and the kept ones without it"
            )
        if isinstance(module, Fp8Linear | Fp8GroupedLinear) and module.recipe != recipe:
            raise ValueError(f"{path} follows {module.recipe}, and the run is to follow {recipe}")


class Fp8Precision(Precision):
    """Everything that is not an FP8 product in float32."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe

    def convert_module(self, module: nn.Module) -> nn.Module:
        check(module, self.recipe)
        return super().convert_module(module)


class Fp8MixedPrecision(MixedPrecision):
    """Everything that is not an FP8 product in bfloat16 by autocast; float32 master weights and gradients."""

    def __init__(self, recipe: Recipe, device: str) -> None:
        super().__init__("bf16-mixed", device)
        self.recipe = recipe

    def convert_module(self, module: nn.Module) -> Any:
        check(module, self.recipe)
        return super().convert_module(module)
