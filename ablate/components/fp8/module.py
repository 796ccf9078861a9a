"""Linear maps: grouped products in ordinary arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GroupedLinear(nn.Module):
    """One matrix per group of rows. x_NI (rows sorted by group), offsets_E (int32 ends of groups) -> y_NO."""

    def __init__(self, n_groups: int, in_features: int, out_features: int, *, backend: str) -> None:
        super().__init__()
        self.backend = backend
        self.weight = nn.Parameter(torch.empty(n_groups, out_features, in_features))

    def forward(self, x_NI: Tensor, offsets_E: Tensor) -> Tensor:
        if self.backend == "reference":
            return grouped_reference(x_NI, self.weight, offsets_E)
        weight = self.weight
        if torch.is_autocast_enabled(x_NI.device.type):
            dtype = torch.get_autocast_dtype(x_NI.device.type)
            x_NI, weight = x_NI.to(dtype), weight.to(dtype)
        return F.grouped_mm(x_NI, weight.transpose(-2, -1), offs=offsets_E)


def grouped_reference(x_NI: Tensor, weight_EOI: Tensor, offsets_E: Tensor) -> Tensor:
    """The loop over groups. Every row must lie before the last offset."""
    ends = offsets_E.tolist()
    assert ends[-1] == x_NI.shape[0]
    groups = zip([0, *ends[:-1]], ends, weight_EOI, strict=True)
    return torch.cat([F.linear(x_NI[start:end], weight) for start, end, weight in groups])
