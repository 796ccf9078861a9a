"""E4M3 numbers with one float32 scale per tile: real float8_e4m3fn casts, and the way back to float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0  # of E4M3
TILE = 128
# Smallest normal float32: a tile of zeros gets this scale, and x / scale cannot overflow to inf.
SMALLEST_SCALE = 2.0**-126


class Tiling(Protocol):
    """Which elements of a tensor share a scale."""

    def largest(self, x: Tensor) -> list[Tensor]:
        """Largest magnitude of every tile, in one or more tensors; NaN where a tile holds one."""

    def views(self, x: Tensor) -> list[Tensor]:
        """All of x, in views that go with the tensors of `largest`."""

    def spread(self, scale: Tensor) -> Tensor:
        """A tensor of scales in a shape that broadcasts against its view."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Tiles of `rows` x `columns` over the last two axes, smaller at the far edges; 0 is the whole axis."""

    rows: int
    columns: int

    def views(self, x: Tensor) -> list[Tensor]:
        """Shape (..., tiles, rows, tiles, columns). Up to four, as an axis may end in a smaller tile."""
        return [view for part in _split(x, -1, self.columns) for view in _split(part, -3, self.rows)]

    def largest(self, x: Tensor) -> list[Tensor]:
        return [view.abs().amax(dim=(-3, -1), keepdim=True) for view in self.views(x)]

    def spread(self, scale: Tensor) -> Tensor:
        return scale


def _split(x: Tensor, axis: int, size: int) -> list[Tensor]:
    """One axis as (tiles, size): the full tiles, and the rest as one smaller tile."""
    length = x.shape[axis]
    if size == 0 or length <= size:
        return [x.unflatten(axis, (1, length))] if length else []
    full = length - length % size
    parts = [x.narrow(axis, 0, full).unflatten(axis, (-1, size))]
    if full < length:
        parts.append(x.narrow(axis, full, length - full).unflatten(axis, (1, -1)))
    return parts


class SegmentColumns:
    """Tiles of 128 x 1 down the rows of x_PK that start anew at every segment: none straddles two experts."""

    def __init__(self, ends: Sequence[int], device: torch.device) -> None:
        starts, tile_ends = [], []
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            for row in range(start, end, TILE):
                starts.append(row)
                tile_ends.append(min(row + TILE, end))
        sizes = [end - start for start, end in zip(starts, tile_ends, strict=True)]
        start_S = torch.tensor(starts, dtype=torch.int64, device=device)
        size_S = torch.tensor(sizes, dtype=torch.int64, device=device)
        self.tile_P = torch.repeat_interleave(size_S, output_size=ends[-1])
        # A tile that is shorter than the longest repeats its last row, which leaves its maximum as it is.
        within_X = torch.arange(max(sizes, default=1), device=device)
        self.row_SX = start_S[:, None] + torch.minimum(within_X, size_S[:, None] - 1)

    def largest(self, x_PK: Tensor) -> list[Tensor]:
        x_SXK = x_PK.index_select(0, self.row_SX.flatten()).unflatten(0, self.row_SX.shape)
        return [x_SXK.abs_().amax(dim=1)]

    def views(self, x_PK: Tensor) -> list[Tensor]:
        return [x_PK]

    def spread(self, scale: Tensor) -> Tensor:
        return scale.index_select(0, self.tile_P)


@dataclass(frozen=True, slots=True)
class Quantised:
    """E4M3 values and the scales of their tiles: value times scale is the number meant."""

    values: Tensor
    scales: list[Tensor]  # float32
    tiling: Tiling

    def dequantise(self) -> Tensor:
        """In float32: exact for power-of-two scales, else each element rounded once to float32."""
        x = decode(self.values)
        for view, scale in zip(self.tiling.views(x), self.scales, strict=True):
            view.mul_(self.tiling.spread(scale))
        return x


def quantise(x: Tensor, tiling: Tiling, *, power_of_two_scales: bool) -> Quantised:
    """The largest magnitude of every tile becomes 448 (or at most 448, where scales are powers of two).

    inf or NaN makes its tile's scale non-finite, and with it every number that the tile stands for: divergence
    shows in the loss instead of being clamped away.
    """
    x = x.to(torch.float32)
    scales = [_scale(largest, power_of_two_scales) for largest in tiling.largest(x)]
    quotient = torch.empty_like(x)
    for source, target, scale in zip(tiling.views(x), tiling.views(quotient), scales, strict=True):
        torch.div(source, tiling.spread(scale), out=target)
    # Casts of numbers beyond 448 differ between torch versions: NaN in some, 448 in others.
    return Quantised(quotient.clamp_(-LARGEST, LARGEST).to(E4M3), scales, tiling)


def _scale(largest: Tensor, power_of_two: bool) -> Tensor:
    scale = (largest / LARGEST).clamp_min_(SMALLEST_SCALE)
    if not power_of_two:
        return scale
    # Rounds the bit pattern up to an empty mantissa. Adding 0 * scale keeps inf and NaN non-finite.
    bits = scale.view(torch.int32).add(0x7FFFFF).bitwise_and_(0x7F800000)
    return bits.view(torch.float32).add_(scale * 0)


def decode(values: Tensor) -> Tensor:
    """E4M3 as float32, exactly; the code for NaN reads 480, as a tile that holds one has a NaN scale anyway.

    The code's bits put in the places of float32's sign, exponent and mantissa mean 2^-120 of its value, subnormals
    included (exponent biases 7 and 127). On a CPU torch's own cast is scalar code: 295 us for 1024 x 96 numbers
    against 25 us, one thread of an EPYC with AVX-512, torch 2.13.
    """
    bits = values.view(torch.int8).to(torch.int32).mul_(1 << 20).bitwise_and_(-0x80000000 | 0x07F00000)
    return bits.view(torch.float32).mul_(2.0**120)
