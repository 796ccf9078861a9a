"""What E4M3 loses: share of non-zero numbers that become zero, and largest magnitudes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ablate.components.fp8.quantise import Quantised
from ablate.model.recompute import once

Kind = Literal["activation", "weight", "gradient"]


class Observation:
    """Sums over what is added; a block that is computed again adds its tensors once."""

    def __init__(self) -> None:
        self._sums: dict[Kind, list[Tensor]] = {}

    def add(self, kind: Kind, x: Tensor, quantised: Quantised) -> None:
        """Count what quantising x lost; x and `quantised` have one shape. Nothing waits for the device."""
        if x.numel():  # else a rank without tokens
            once(lambda: self._add(kind, x, quantised))

    def _add(self, kind: Kind, x: Tensor, quantised: Quantised) -> None:
        codes = quantised.values.view(torch.int8).bitwise_and(0x7F)
        nonzero = x.count_nonzero()
        new = [nonzero, nonzero - codes.count_nonzero(), x.detach().abs().amax().float()]
        if kind in self._sums:
            old = self._sums[kind]
            new = [old[0] + new[0], old[1] + new[1], torch.maximum(old[2], new[2])]
        self._sums[kind] = new

    def metrics(self) -> dict[str, float]:
        """`fp8_<kind>_underflow_share` of the non-zero numbers, and `fp8_<kind>_amax`."""
        result = {}
        for kind, (nonzero, lost, largest) in self._sums.items():
            result[f"fp8_{kind}_underflow_share"] = float(lost) / max(1, int(nonzero))
            result[f"fp8_{kind}_amax"] = float(largest)
        return result
