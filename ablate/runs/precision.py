"""How narrow an interval is asked for: in nats per token, or as a share of compute."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

FORM = re.compile(r"([0-9.]+(?:e-?[0-9]+)?) *(nats?|%)?(?: of compute)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """The half-width that an interval may have at most."""

    half_width: float  # in nats per token, or of the logarithm of the cost to reach a loss
    unit: Literal["nats", "compute"]

    def __str__(self) -> str:
        if self.unit == "nats":
            return f"{self.half_width:.4g} nats"
        return f"{100 * math.expm1(self.half_width):.4g} % of compute"


def parse_precision(text: str) -> Precision:
    """`0.01`, `0.01 nats`, `3%` or `3% of compute`. ValueError says what is allowed."""
    found = FORM.fullmatch(text.strip())
    try:
        value = float(found[1]) if found else 0.0
    except ValueError:
        value = 0.0
    in_compute = found is not None and (found[2] == "%" or text.strip().endswith("of compute"))
    if found is None or not 0 < value < (100 if in_compute else 10) or (in_compute and found[2] != "%"):
        raise ValueError(
            f"precision is {text!r}; it is the half-width that the interval may have at most, in nats per token or as "
            "a share of compute: 0.01, 0.01nats or 3%"
        )
    if in_compute:
        return Precision(half_width=math.log1p(value / 100), unit="compute")
    return Precision(half_width=value, unit="nats")
