"""Operations of the output head with its cross-entropy, forward and backward, as a training step does it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ablate.bench.operation import Implementation, Operation, Shape, Tensors, Unavailable
from ablate.bench.passes import backward, compiled, expected_backward, integers, random


def operations() -> list[Operation]:
    """Head and loss at DeepSeek-V3's vocabulary and at a small one."""
    return [_operation(8192, 2048, 129280), _operation(32768, 1024, 32768)]


def _operation(n: int, d: int, c: int) -> Operation:
    def inputs(s: Shape, seed: int) -> Tensors:
        hidden, weight = random(s["N"], s["D"], seed=seed), random(s["C"], s["D"], seed=seed + 1, scale=0.02)
        return hidden, weight, integers(s["C"], s["N"], seed=seed + 9), torch.ones((), device=hidden.device)

    return Operation(
        group="loss",
        name="head and cross-entropy, both passes",
        shape={"N": n, "D": d, "C": c},
        small={"N": 200, "D": 128, "C": 1000},
        inputs=inputs,
        expected=expected_backward(lambda h, w, t: F.cross_entropy(h @ w.T, t), 2),
        flops=lambda s: 6.0 * s["N"] * s["D"] * s["C"],
        slot="head",
        implementations=[
            Implementation(name="library", prepare=backward(_whole, 2, both=True), fills="library"),
            Implementation(name="torch.compile", prepare=backward(compiled(_whole), 2, both=True), needs="cuda"),
            Implementation(name="F.linear_cross_entropy", prepare=backward(_chunked, 2, both=True), needs="cuda"),
            Implementation(name="Liger", prepare=backward(_liger, 2, both=True), needs="cuda"),
            Implementation(name="triton", prepare=backward(_ours, 2, both=True), needs="triton", fills="triton"),
        ],
    )


def _whole(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """As model.Head has it: logits whole, the loss in float32."""
    return F.cross_entropy((hidden @ weight.T).float(), targets)


def _chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    if not hasattr(F, "linear_cross_entropy"):
        raise Unavailable(f"torch {torch.__version__} has no F.linear_cross_entropy")
    return F.linear_cross_entropy(hidden, weight, targets, options=torch.nn.LinearCrossEntropyOptions()).float()


def _liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction
    except ImportError:
        raise Unavailable("liger-kernel is not installed") from None
    return LigerFusedLinearCrossEntropyFunction.apply(hidden, weight, targets)[0].float()


def _ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from ablate.kernels.cross_entropy import linear_cross_entropy

    return linear_cross_entropy(hidden, weight, targets)
