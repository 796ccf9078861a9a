"""E4M3 numbers by compiled C: in every element what `ablate.components.fp8.quantise` gives, in two passes each way.

For float32 tensors on a CPU, one thread.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ablate.components.fp8.quantise import E4M3, TILE, Quantised, SegmentStrips, Strips, Tiling
from ablate.kernels.native import load

_COUNT, _ADDRESS, _FLAG = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int
FUNCTIONS = (
    ("quantise_tiles", (_ADDRESS, *[_COUNT] * 5, _FLAG, _ADDRESS, _ADDRESS)),
    ("dequantise_tiles", (_ADDRESS, _ADDRESS, *[_COUNT] * 5, _ADDRESS)),
    ("round_trip_tiles", (_ADDRESS, *[_COUNT] * 5, _FLAG, _ADDRESS)),
    ("quantise_columns", (_ADDRESS, _COUNT, _COUNT, _ADDRESS, _ADDRESS, _COUNT, _FLAG, _ADDRESS, _ADDRESS)),
    ("round_trip_columns", (_ADDRESS, _COUNT, _COUNT, _ADDRESS, _ADDRESS, _COUNT, _FLAG, _ADDRESS)),
    ("dequantise_columns", (_ADDRESS, _ADDRESS, _COUNT, _COUNT, _ADDRESS, _ADDRESS, _ADDRESS)),
)


@cache
def library() -> Any:
    """The compiled functions of e4m3.c."""
    return load(Path(__file__).with_name("e4m3.c"), FUNCTIONS)


@dataclass(frozen=True, slots=True)
class Grid:
    """How a tensor (..., rows, columns) is cut into tiles of its own matrices."""

    n: int
    rows: int
    columns: int
    tile_rows: int
    tile_columns: int

    @classmethod
    def of(cls, x: Tensor, tiling: Tiling) -> Grid:
        rows, columns = x.shape[-2:]
        size = (1, TILE) if isinstance(tiling, Strips) else (getattr(tiling, "size", 0),) * 2
        n = x.numel() // max(rows * columns, 1)
        return cls(n, rows, columns, size[0] or max(rows, 1), size[1] or max(columns, 1))

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        return self.n, self.rows, self.columns, self.tile_rows, self.tile_columns

    @property
    def n_tiles(self) -> int:
        return self.n * -(-self.rows // self.tile_rows) * -(-self.columns // self.tile_columns)


@lru_cache(maxsize=16)
def _strips(rows: int) -> tuple[Tensor, Tensor]:
    """Starts and lengths of strips of 128 rows."""
    starts = torch.arange(0, rows, TILE)
    return starts, torch.clamp(rows - starts, max=TILE)


def _rows_of(tiling: Tiling, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Starts and lengths of a tiling down the rows; None for tiles that a grid has."""
    if isinstance(tiling, SegmentStrips):
        return tiling.starts_and_lengths
    return _strips(x.shape[0]) if isinstance(tiling, Strips) and tiling.axis == -2 else None


def _group(tiling: Tiling) -> int:
    """Neighbouring columns that share the scale of a strip."""
    return TILE if isinstance(tiling, SegmentStrips) and tiling.square else 1


@dataclass(frozen=True, slots=True)
class CompiledQuantised(Quantised):
    """`Quantised` in one tensor of scales, in the order of the tiles."""

    @classmethod
    def of(cls, x: Tensor, tiling: Tiling, *, power_of_two_scales: bool) -> CompiledQuantised:
        """As `ablate.components.fp8.quantise.quantise`."""
        x = x.to(torch.float32).contiguous()
        codes = torch.empty(x.shape, dtype=torch.uint8)
        if (strips := _rows_of(tiling, x)) is not None:
            starts, lengths = strips
            scale = torch.empty(len(starts), x.shape[1])
            library().quantise_columns(
                x.data_ptr(), x.shape[1], len(starts), starts.data_ptr(), lengths.data_ptr(), _group(tiling),
                power_of_two_scales,
                codes.data_ptr(), scale.data_ptr(),
            )  # fmt: skip
        else:
            grid = Grid.of(x, tiling)
            scale = torch.empty(grid.n_tiles)
            library().quantise_tiles(x.data_ptr(), *grid.sizes, power_of_two_scales, codes.data_ptr(), scale.data_ptr())
        return cls(codes.view(E4M3), (scale,), tiling)

    def dequantise(self) -> Tensor:
        """In float32."""
        codes, (scale,) = self.values, self.scales
        out = torch.empty(codes.shape, dtype=torch.float32)
        if (strips := _rows_of(self.tiling, codes)) is not None:
            starts, lengths = strips
            library().dequantise_columns(
                codes.data_ptr(), scale.data_ptr(), codes.shape[1], len(starts), starts.data_ptr(), lengths.data_ptr(),
                out.data_ptr(),
            )  # fmt: skip
        else:
            sizes = Grid.of(codes, self.tiling).sizes
            library().dequantise_tiles(codes.data_ptr(), scale.data_ptr(), *sizes, out.data_ptr())
        return out


def round_trip(x: Tensor, tiling: Tiling, *, power_of_two_scales: bool) -> Tensor:
    """Quantised and dequantised, without the codes between; float32."""
    x = x.to(torch.float32).contiguous()
    out = torch.empty_like(x)
    if (strips := _rows_of(tiling, x)) is not None:
        starts, lengths = strips
        library().round_trip_columns(
            x.data_ptr(), x.shape[1], len(starts), starts.data_ptr(), lengths.data_ptr(), _group(tiling),
                power_of_two_scales,
            out.data_ptr(),
        )  # fmt: skip
    else:
        library().round_trip_tiles(x.data_ptr(), *Grid.of(x, tiling).sizes, power_of_two_scales, out.data_ptr())
    return out
