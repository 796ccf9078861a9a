"""Nodes of the slots that no component owns: the norm, the output head, the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ablate.spec.backends import without_compiler, without_triton
from ablate.spec.cost import FP32_BYTES, Cost, matrix, vector
from ablate.spec.machine import Machine
from ablate.spec.ranges import NotNegative, Positive, ShareBelowAll, checked

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import AdamW as TorchAdamW

    from ablate.model.modules import Head, RMSNorm

KernelBackend = Literal["auto", "compiled", "library", "triton"]


@checked("norm")
@dataclass(frozen=True, kw_only=True, slots=True)
class RMSNormNode:
    """Root-mean-square norm with a weight (arXiv:1910.07467); `library` is torch's, `compiled` C for a processor."""

    kind: Literal["rms"] = "rms"
    eps: Positive
    backend: KernelBackend = "auto"

    def obstacles(self, machine: Machine, dtype: str) -> Mapping[str, str]:
        return {"compiled": without_compiler(machine, dtype), "library": "", "triton": without_triton(machine)}

    def build(self, dim: int) -> RMSNorm:
        from ablate.model.modules import RMSNorm

        return RMSNorm(dim, self.eps, self.backend)

    def cost(self, dim: int) -> Cost:
        return vector(dim)


@checked("head")
@dataclass(frozen=True, kw_only=True, slots=True)
class LinearHeadNode:
    """A matrix of its own, not the embedding's.

    Its cross-entropy is torch's (`library`), in C for a processor (`compiled`), or without the logits ever being whole
    (`triton`).
    """

    kind: Literal["linear-head"] = "linear-head"
    backend: KernelBackend = "auto"

    def obstacles(self, machine: Machine, dtype: str) -> Mapping[str, str]:
        return {"compiled": without_compiler(machine, dtype), "library": "", "triton": without_triton(machine)}

    def build(self, dim: int, vocab_size: int) -> Head:
        from ablate.model.modules import Head

        return Head(dim, vocab_size, self.backend)

    def cost(self, dim: int, vocab_size: int) -> Cost:
        return matrix(vocab_size, dim)


@checked("optimizer")
@dataclass(frozen=True, kw_only=True, slots=True)
class AdamWNode:
    """AdamW (arXiv:1711.05101), one fused update; vectors (the norms' weights) do not decay."""

    kind: Literal["adamw"] = "adamw"
    weight_decay: NotNegative
    beta1: ShareBelowAll = 0.9
    beta2: ShareBelowAll = 0.95
    epsilon: Positive = 1e-8

    @property
    def state_bytes_per_parameter(self) -> int:
        """Two moments in float32."""
        return 2 * FP32_BYTES

    def build(self, model: nn.Module, learning_rate: float) -> TorchAdamW:
        from torch.optim import AdamW

        matrices = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": self.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        return AdamW(groups, lr=learning_rate, betas=(self.beta1, self.beta2), eps=self.epsilon, fused=True)


# Slot -> nodes that may fill it without any component's doing.
BASE_NODES: Mapping[str, tuple[type, ...]] = {
    "norm": (RMSNormNode,),
    "head": (LinearHeadNode,),
    "optimizer": (AdamWNode,),
}
