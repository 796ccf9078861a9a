"""E4M3 numbers with one float32 scale per tile: real float8_e4m3fn casts, and the way back to float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
MAX_E4M3 = 448.0  # the largest finite number
TILE = 128
# Smallest normal float32: a tile of zeros gets this scale, and x / scale cannot overflow to inf.
MIN_SCALE = 2.0**-126


class Tiling(Protocol):
    """Which elements of a tensor share a scale."""

    def largest(self, magnitude: Tensor) -> list[Tensor]:
        """Largest of every tile, in one or more tensors; NaN where a tile holds one."""

    def views(self, x: Tensor) -> list[Tensor]:
        """All of x, in views that go with the tensors of `largest`."""

    def spread(self, scale: Tensor) -> Tensor:
        """A tensor of scales in a shape that broadcasts against its view."""


@dataclass(frozen=True, slots=True)
class Strips:
    """Tiles of 128 elements along one axis, -1 (1 x 128) or -2 (128 x 1); the last may be shorter."""

    axis: int

    def views(self, x: Tensor) -> list[Tensor]:
        return _split(x, self.axis, TILE) if x.shape[self.axis] > TILE else [x]

    def largest(self, magnitude: Tensor) -> list[Tensor]:
        return [_largest(view, (self.axis,)) for view in self.views(magnitude)]

    def spread(self, scale: Tensor) -> Tensor:
        return scale


@dataclass(frozen=True, slots=True)
class Blocks:
    """Tiles of `size` x `size` over the last two axes, smaller at the far edges; size 0 is one tile a matrix."""

    size: int

    def views(self, x: Tensor) -> list[Tensor]:
        """Up to four, as an axis may end in a smaller tile; (..., tiles, rows, tiles, columns) if there are several."""
        if self.size == 0 or max(x.shape[-2:]) <= self.size:
            return [x]
        return [view for part in _split(x, -1, self.size) for view in _split(part, -3, self.size)]

    def largest(self, magnitude: Tensor) -> list[Tensor]:
        views = self.views(magnitude)
        return [_largest(view, (-2, -1) if view is magnitude else (-3, -1)) for view in views]

    def spread(self, scale: Tensor) -> Tensor:
        return scale


def _largest(view: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The largest along axes, which stay with a length of 1; zero where a rank has no rows at all."""
    if view.numel():
        return view.amax(axes, keepdim=True)
    return view.new_zeros([1 if i - view.ndim in axes else n for i, n in enumerate(view.shape)])


def _split(x: Tensor, axis: int, size: int) -> list[Tensor]:
    """One axis as (tiles, size): the full tiles, and the rest as one smaller tile."""
    length = x.shape[axis]
    full = length - length % size
    parts = [x.narrow(axis, 0, full).unflatten(axis, (-1, size))] if full else []
    if full < length:
        parts.append(x.narrow(axis, full, length - full).unflatten(axis, (1, -1)))
    return parts


class SegmentStrips:
    """Tiles of 128 x 1 down the rows of x_PK that start anew at every segment: none straddles two experts.

    square: of 128 x 128.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device, *, square: bool = False) -> None:
        self.square = square
        row, starts, lengths = 0, list[int](), list[int]()
        for size in sizes:
            starts += range(row, row + size, TILE)
            lengths += [min(TILE, size - done) for done in range(0, size, TILE)]
            row += size
        start_S, length_S = torch.tensor([starts, lengths], dtype=torch.int64, device=device)
        self.starts_and_lengths = start_S, length_S
        self.tile_P = torch.repeat_interleave(length_S, output_size=row)
        # A tile that is shorter than the longest repeats its last row, which leaves its maximum as it is.
        within_X = torch.arange(max(lengths, default=1), device=device)
        self.row_SX = start_S[:, None] + torch.minimum(within_X, length_S[:, None] - 1)

    def largest(self, magnitude: Tensor) -> list[Tensor]:
        magnitude_SXK = magnitude.index_select(0, self.row_SX.flatten()).unflatten(0, self.row_SX.shape)
        largest_SK = magnitude_SXK.amax(dim=1)
        if self.square:
            for tile in _split(largest_SK, -1, TILE):
                tile.copy_(tile.amax(-1, keepdim=True))
        return [largest_SK]

    def views(self, x_PK: Tensor) -> list[Tensor]:
        return [x_PK]

    def spread(self, scale: Tensor) -> Tensor:
        return scale.index_select(0, self.tile_P)


@dataclass(frozen=True, slots=True)
class Quantised:
    """E4M3 values and the scales of their tiles: value times scale is the number meant."""

    values: Tensor
    scales: Sequence[Tensor]  # float32
    tiling: Tiling

    @classmethod
    def of(cls, x: Tensor, tiling: Tiling, *, power_of_two_scales: bool) -> Quantised:
        """`quantise`."""
        return quantise(x, tiling, power_of_two_scales=power_of_two_scales)

    def dequantise(self) -> Tensor:
        """In float32: exact for power-of-two scales, else each element rounded once to float32."""
        x = _decode(self.values)
        for view, scale in zip(self.tiling.views(x), self.scales, strict=True):
            view.mul_(self.tiling.spread(scale * 256.0))
        return x


def quantise(x: Tensor, tiling: Tiling, *, power_of_two_scales: bool) -> Quantised:
    """The largest magnitude of every tile becomes 448 (or at most 448, where scales are powers of two).

    inf or NaN makes its tile's scale non-finite, and with it every number that the tile stands for: divergence
    shows in the loss instead of being clamped away.
    """
    x = x.to(torch.float32)
    work = x.abs()
    scales = [_scale(largest, power_of_two_scales) for largest in tiling.largest(work)]
    for source, target, scale in zip(tiling.views(x), tiling.views(work), scales, strict=True):
        torch.div(source, tiling.spread(scale), out=target)
    # Casts of numbers beyond 448 differ between torch versions: NaN in some, 448 in others.
    return Quantised(work.clamp_(-MAX_E4M3, MAX_E4M3).to(E4M3), scales, tiling)


def _scale(largest: Tensor, power_of_two: bool) -> Tensor:
    scale = largest.div_(MAX_E4M3).clamp_min_(MIN_SCALE)
    if not power_of_two:
        return scale
    # Rounds the bit pattern up to an empty mantissa. Adding 0 * scale keeps inf and NaN non-finite.
    bits = scale.view(torch.int32).add(0x7FFFFF).bitwise_and_(0x7F800000)
    return bits.view(torch.float32).add_(scale * 0)


# Tensors, as an operation of one thread on a small tensor takes 2.5 us with a number and 1 us with these. The device
# is named because this file may first be imported while a model is built on another default device.
_SHIFT_BY_7 = torch.tensor(1 << 7, dtype=torch.int16, device="cpu")
_SIGN_EXPONENT_MANTISSA = torch.tensor(-0x8000 | 0x3F80, dtype=torch.int16, device="cpu")


def _decode(values: Tensor) -> Tensor:
    """1/256 of E4M3 numbers as float32, exactly; NaN reads 480 / 256, but a tile that holds one has a NaN scale.

    The code's bits in the places of float16's sign, exponent and mantissa mean 2^-8 of its value, subnormals
    included (exponent biases 7 and 15). On a CPU torch's own cast is scalar code: 295 us for 1024 x 96 numbers
    against 25 us, one thread of an EPYC with AVX-512, torch 2.13.
    """
    bits = values.view(torch.int8).to(torch.int16).mul_(_SHIFT_BY_7).bitwise_and_(_SIGN_EXPONENT_MANTISSA)
    return bits.view(torch.float16).to(torch.float32)
