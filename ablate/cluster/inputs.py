"""Every number that the simulator takes, with where it comes from and how far it may be off; and draws of them all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ablate.errors import nearest
from ablate.randomness import uniform
from ablate.spec.decoding import decode
from ablate.spec.ranges import NotNegative, checked

Floats = NDArray[np.float64]
Label = Literal["exact", "measured here", "measured elsewhere", "assumed"]

N_SAMPLES = 128  # random draws behind a range; a 5 % quantile of so many is good to a tenth of the range
SEED = 20_241_227
Z95 = NormalDist().inv_cdf(0.95)


@checked("input")
@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """One number, with the values between which it lies with a probability of 90 %. `unit` is "" for a ratio."""

    value: NotNegative
    low: NotNegative
    high: NotNegative
    label: Label
    source: str
    unit: str = ""
    at_most: float | None = None  # what no draw exceeds: 1 for a share

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"input.value is {self.value}; it must lie between low, {self.low}, and high, {self.high}")

    @property
    def fixed(self) -> bool:
        return self.low == self.high

    def at(self, z: Floats) -> Floats:
        """The value at quantiles of a standard normal: two half-normals, on a log scale where nothing is zero."""
        z = z / Z95
        if self.low > 0:
            logs = np.where(z > 0, math.log(self.high / self.value), math.log(self.value / self.low))
            found = self.value * np.exp(z * logs)
        else:
            found = self.value + z * np.where(z > 0, self.high - self.value, self.value - self.low)
        return np.asarray(np.clip(found, 0.0, self.at_most))

    def to_json(self) -> dict[str, Any]:
        return {
            "value": self.value, "low": self.low, "high": self.high, "unit": self.unit, "label": self.label,
            "source": self.source,
        }  # fmt: skip


def known(value: float, source: str, unit: str = "", label: Label = "exact") -> Input:
    """A number without a range."""
    return Input(value=value, low=value, high=value, label=label, source=source, unit=unit)


def assumptions() -> dict[str, Input]:
    """The shipped inputs by name, of assumptions.toml."""
    import tomllib

    text = (resources.files(__name__.rpartition(".")[0]) / "assumptions.toml").read_text(encoding="utf-8")
    return {name: decode(Input, data, name) for name, data in tomllib.loads(text).items()}


def assume(inputs: Mapping[str, Input], given: Mapping[str, float]) -> dict[str, Input]:
    """The inputs with some of them set by the user, which then have no range; ValueError for a name there is not."""
    changed = dict(inputs)
    for name, value in given.items():
        if name not in inputs:
            raise ValueError(f"there is no input {name!r}; {nearest(name, inputs)}")
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"input {name} is {value}; it must be at least 0")
        changed[name] = replace(inputs[name], value=value, low=value, high=value, label="assumed", source="given")
    return changed


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Draws:
    """All inputs drawn together, one number per draw (S,): the central values first, then for each input that has a
    range its low and its high end alone, then random ones. Everything simulated is computed for all draws at once.
    """

    values: Mapping[str, Floats]
    varied: tuple[str, ...]  # inputs with a range, in the order of their ends

    def __getitem__(self, name: str) -> Floats:
        return self.values[name]

    def central(self, result: Floats) -> float:
        return float(result[0])

    def range(self, result: Floats) -> tuple[float, float]:
        """The 5 % and the 95 % quantile over the random draws."""
        low, high = np.quantile(result[1 + 2 * len(self.varied) :], (0.05, 0.95))
        return float(low), float(high)

    def tornado(self, result: Floats) -> list[tuple[str, float, float]]:
        """(input, result at its low end, result at its high end), the widest first."""
        ends = [(name, float(result[1 + 2 * i]), float(result[2 + 2 * i])) for i, name in enumerate(self.varied)]
        return sorted(ends, key=lambda end: -abs(end[2] - end[1]))


def draw(inputs: Mapping[str, Input], n_samples: int = N_SAMPLES, seed: int = SEED) -> Draws:
    """Latin hypercube samples of the inputs, which are taken to be independent; an input's draws depend on its name and
    not on what else there is, so that two variants are compared under the same circumstances.
    """
    varied = tuple(name for name, item in inputs.items() if not item.fixed)
    n = 1 + 2 * len(varied) + n_samples
    values: dict[str, Floats] = {}
    for name, item in inputs.items():
        if item.fixed:
            values[name] = np.full(n, item.value)
            continue
        z = np.zeros(n)
        at = 1 + 2 * varied.index(name)
        z[at], z[at + 1] = -Z95, Z95
        z[1 + 2 * len(varied) :] = _stratified(name, n_samples, seed)
        values[name] = item.at(z)
    return Draws(values=values, varied=varied)


def _stratified(name: str, n: int, seed: int) -> Floats:
    """Standard normal numbers, one from each of n equally probable strata, in an order of the name's own."""
    order = np.argsort(uniform(f"strata of the input {name}, seed {seed}", n))
    shares = (order + uniform(f"inside the strata of the input {name}, seed {seed}", n)) / n
    return np.array([NormalDist().inv_cdf(max(share, 1e-9)) for share in shares])


def document(inputs: Mapping[str, Input]) -> list[dict[str, Any]]:
    return [{"name": name, **item.to_json()} for name, item in inputs.items()]
