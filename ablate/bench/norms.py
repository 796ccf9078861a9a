"""Operations of what only moves memory: the norm, and the heads of latent attention put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ablate.bench.operation import Implementation, Operation, Prepared, Shape, Tensors, Unavailable
from ablate.bench.passes import PASSES, backward, compiled, expected_backward, forward, random
from ablate.model.block import Rotation, rotation_table

EPS = 1e-6


def operations() -> list[Operation]:
    """The norm at two shapes, both passes; the assembly of attention's heads."""
    return [*_norm_operations(), _assembly_operation()]


def _norm_operations() -> list[Operation]:
    def inputs(shape: Shape, seed: int) -> Tensors:
        n, d = shape["N"], shape["D"]
        return random(n, d, seed=seed), random(d, seed=seed + 1, dtype=torch.float32), random(n, d, seed=seed + 2)

    return [_norm_operation(n, d, pass_, inputs) for n, d in ((16384, 4096), (32768, 1024)) for pass_ in PASSES]


def _norm_operation(n: int, d: int, pass_: str, inputs: Callable[[Shape, int], Tensors]) -> Operation:
    def prepare(function: Callable[..., Any]) -> Callable[..., Prepared]:
        return forward(lambda x, w, _: function(x, w)) if pass_ == "forward" else backward(function, 2)

    return Operation(
        group="norm",
        name=f"rms_norm {pass_}",
        shape={"N": n, "D": d},
        small={"N": 200, "D": 256},
        inputs=inputs,
        expected=expected_backward(_exact, 2) if pass_ == "backward" else lambda x, w, _: _exact(x, w),
        bytes=lambda s: (2.0 if pass_ == "forward" else 3.0) * 2 * s["N"] * s["D"],
        slot="norm" if d == 1024 else "",
        implementations=[
            Implementation(name="library", prepare=prepare(_library), fills="library"),
            Implementation(name="torch.compile", prepare=prepare(compiled(_library)), needs="cuda"),
            Implementation(name="Liger", prepare=prepare(_liger), needs="cuda"),
            Implementation(name="triton", prepare=prepare(_ours), needs="triton", fills="triton"),
        ],
    )


def _exact(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, EPS)


def _library(x: Tensor, weight: Tensor) -> Tensor:
    """As block.RMSNorm has it: float32 inside."""
    return F.rms_norm(x.float(), weight.shape, weight, EPS).to(x.dtype)


def _ours(x: Tensor, weight: Tensor) -> Tensor:
    from ablate.kernels.rms_norm import rms_norm

    return rms_norm(x, weight, EPS)


def _liger(x: Tensor, weight: Tensor) -> Tensor:
    try:
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    except ImportError:
        raise Unavailable("liger-kernel is not installed") from None
    return LigerRMSNormFunction.apply(x, weight.to(x.dtype), EPS, 0.0, "llama", False)


def _assembly_operation() -> Operation:
    """Joined, rotated queries and keys, and values, from what the projections gave."""
    small = {"B": 2, "T": 64, "H": 2, "K": 128, "P": 64, "V": 128}

    def inputs(s: Shape, seed: int) -> Tensors:
        table = rotation_table(s["P"], s["T"], 1e4, torch.get_default_device())
        return (
            random(s["B"], s["T"], s["H"], s["K"] + s["P"], seed=seed),
            random(s["B"], s["T"], s["H"], s["K"] + s["V"], seed=seed + 1),
            random(s["B"], s["T"], s["P"], seed=seed + 2),
            table.cos_TP,
            table.sin_TP,
        )

    def moved(s: Shape) -> float:
        read, written = 2 * s["K"] + s["P"] + s["V"], 2 * (s["K"] + s["P"]) + s["V"]
        return 2.0 * s["B"] * s["T"] * s["H"] * (read + written)

    def joined(q: Tensor, kv: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Tensors:
        p = key.shape[-1]
        nope, rotation = q.shape[-1] - p, Rotation(cos, sin)
        query = torch.cat([q[..., :nope], rotation.rotate(q[..., nope:])], -1)
        shared = rotation.rotate(key[:, :, None]).expand(-1, -1, q.shape[2], -1)
        return query, torch.cat([kv[..., :nope], shared], -1), kv[..., nope:].contiguous()

    def ours(q: Tensor, kv: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Tensors:
        from ablate.components.mla.kernel.assembly import assemble

        return assemble(q, kv, key, cos, sin, q.shape[-1] - key.shape[-1])

    return Operation(
        group="attention",
        name="heads assembled",
        shape={**small, "B": 8, "T": 4096, "H": 16},
        small=small,
        inputs=inputs,
        expected=joined,
        bytes=moved,
        implementations=[
            Implementation(name="library", prepare=forward(joined)),
            Implementation(name="torch.compile", prepare=forward(compiled(joined)), needs="cuda"),
            Implementation(name="triton", prepare=forward(ours), needs="triton"),
        ],
    )
