"""Rows as they travel between ranks in FP8: E4M3 bytes, and behind them the float32 scales of their 1 x 128 tiles.

The scales are those that the receiving product would have found itself (arXiv:2412.19437, section 3.3.3): there a
number is rounded to itself, so that sending it in FP8 rounds no number twice in the products of its rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ablate.components.fp8.quantise import E4M3, TILE, Quantised, Strips, quantise


@dataclass(frozen=True, slots=True)
class Fp8Wire:
    """How rows (N, D) become bytes (N, D + 4 ceil(D / 128)) and again numbers."""

    power_of_two_scales: bool

    def row_bytes(self, dim: int) -> int:
        """Bytes of a row of `dim` channels."""
        return dim + 4 * -(-dim // TILE)

    def encode(self, x_ND: Tensor) -> Tensor:
        """uint8."""
        found = quantise(x_ND, Strips(-1), power_of_two_scales=self.power_of_two_scales)
        scale_NS = torch.cat([scale.reshape(len(x_ND), scale.shape[1:].numel()) for scale in found.scales], dim=1)
        return torch.cat([found.values.view(torch.uint8), scale_NS.view(torch.uint8)], dim=1)

    def decode(self, bytes_NX: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
        """The inverse, rounded once to float32 and then to `dtype`."""
        values = bytes_NX[:, :dim].clone(memory_format=torch.contiguous_format).view(E4M3)
        scale_NS = bytes_NX[:, dim:].clone(memory_format=torch.contiguous_format).view(torch.float32)
        full = dim // TILE
        if dim <= TILE:
            scales = [scale_NS]
        else:  # the full tiles as one view (N, tiles, 128), and the rest as another
            scales = [scale_NS[:, :full, None], *([scale_NS[:, full:, None]] if dim % TILE else [])]
        return Quantised(values, scales, Strips(-1)).dequantise().to(dtype)
