"""Operations of quantisation to E4M3 in tiles: alone, and in the same launch as the norm or the SwiGLU before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ablate.bench.norms import EPS
from ablate.bench.operation import Implementation, Operation, Shape, Tensors
from ablate.bench.passes import compiled, forward, random
from ablate.components.fp8.quantise import E4M3, MAX_E4M3, MIN_SCALE, TILE


def operations() -> list[Operation]:
    """Activations alone, behind SwiGLU and behind a norm; weights."""
    return [
        _activation_operation("activations quantised", _activations, lambda x: x, _plain, read=2.0),
        _activation_operation("SwiGLU quantised", _gate_up, _swiglu, _with_swiglu, read=4.0),
        _activation_operation("norm quantised", _norm_inputs, _norm, _with_norm, read=2.0),
        _weight_operation(),
    ]


def rows_of(x: Tensor) -> Tensors:
    """Values and scales of tiles of 1 x 128, by torch."""
    tiles = x.float().unflatten(-1, (-1, TILE))
    scale = (tiles.abs().amax(-1) / MAX_E4M3).clamp_min(MIN_SCALE)
    return (tiles / scale[..., None]).to(E4M3).flatten(-2), scale.T.contiguous()


def spread(values: Tensor, scales: Tensor) -> Tensor:
    """The numbers that rows stand for: values (N, K), scales (K / 128, N)."""
    return values.float() * scales.T.repeat_interleave(TILE, -1)[:, : values.shape[1]]


def _activation_operation(
    name: str,
    inputs: Callable[[Shape, int], Tensors],
    before: Callable[..., Tensor],
    ours: Callable[..., Any],
    *,
    read: float,
) -> Operation:
    """Both copies that training needs, by rows and by columns, of what `before` makes of `read` bytes a number."""

    def library(*given: Tensor) -> Tensors:
        x = before(*given)
        return *rows_of(x), *rows_of(x.T.contiguous())

    def numbers(result: Tensors) -> Tensors:
        by_row, scales, by_column, column_scales = result
        return spread(by_row, scales), spread(by_column, column_scales)[:, : by_row.shape[0]].T

    return Operation(
        group="fp8",
        name=f"{name}, both copies",
        shape={"N": 32768, "K": 7168} if read == 2.0 else {"N": 32768, "K": 2048},
        small={"N": 256, "K": 384},
        inputs=inputs,
        expected=lambda *wide: (before(*wide), before(*wide)),
        bytes=lambda s: s["N"] * s["K"] * (read + 2 * (1 + 4 / TILE)),
        tolerance="float8",
        implementations=[
            Implementation(name="library", prepare=forward(library), read=numbers),
            Implementation(name="torch.compile", prepare=forward(compiled(library)), read=numbers, needs="cuda"),
            Implementation(name="triton", prepare=forward(ours), read=numbers, needs="triton"),
        ],
    )


def _activations(s: Shape, seed: int) -> Tensors:
    return (random(s["N"], s["K"], seed=seed),)


def _gate_up(s: Shape, seed: int) -> Tensors:
    return (random(s["N"], 2 * s["K"], seed=seed),)


def _plain(x: Tensor) -> Any:
    from ablate.components.fp8.kernel.quantise import quantise_activation

    return quantise_activation(x, power_of_two=False, rows=True, columns=True)


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def _with_swiglu(gate_up: Tensor) -> Any:
    from ablate.components.fp8.kernel.swiglu import swiglu_quantise

    return swiglu_quantise(gate_up, power_of_two=False, rows=True, columns=True)


def _norm_inputs(s: Shape, seed: int) -> Tensors:
    return random(s["N"], s["K"], seed=seed), random(s["K"], seed=seed + 1, dtype=torch.float32)


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x.to(weight.dtype), weight.shape, weight, EPS).to(x.dtype)


def _with_norm(x: Tensor, weight: Tensor) -> Any:
    from ablate.components.fp8.kernel.norm import rms_norm_quantise

    return rms_norm_quantise(x, weight, EPS, power_of_two=False, columns=True, output=False)[2:]


def _weight_operation() -> Operation:
    def library(w: Tensor) -> Tensors:
        e, o, i = w.shape
        tiles = w.float().view(e, o // TILE, TILE, i // TILE, TILE)
        scale = (tiles.abs().amax((2, 4), keepdim=True) / MAX_E4M3).clamp_min(MIN_SCALE)
        values = (tiles / scale).to(E4M3).view(e, o, i)
        return values, values.transpose(1, 2).contiguous(), scale[:, :, 0, :, 0]

    def ours(w: Tensor) -> Any:
        from ablate.components.fp8.kernel.quantise import quantise_weight

        return quantise_weight(w, power_of_two=False)

    def read(result: Tensors) -> Tensors:
        values, transposed, scales = result
        wide = scales.repeat_interleave(TILE, 1).repeat_interleave(TILE, 2)
        return values.float() * wide, transposed.transpose(1, 2).float() * wide

    return Operation(
        group="fp8",
        name="weights quantised, both copies",
        shape={"E": 64, "O": 2048, "I": 2048},
        small={"E": 2, "O": 256, "I": 384},
        inputs=lambda s, seed: (random(s["E"], s["O"], s["I"], seed=seed, dtype=torch.float32),),
        expected=lambda w: (w, w),
        bytes=lambda s: s["E"] * s["O"] * s["I"] * 6.0,
        tolerance="float8",
        implementations=[
            Implementation(name="library", prepare=forward(library), read=read),
            Implementation(name="torch.compile", prepare=forward(compiled(library)), read=read, needs="cuda"),
            Implementation(name="triton", prepare=forward(ours), read=read, needs="triton"),
        ],
    )
