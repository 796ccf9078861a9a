"""Factors of a study: fields of its preset, levels of a component or the preset itself, each over stated levels."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ablate.components.component import ON
from ablate.components.registry import component
from ablate.spec.decoding import FORBID_UNKNOWN

ALTERNATIVE = "alternative."  # before a component: its levels are the factor's
PRESET = "preset"
LABEL = "label"  # of a level that is a table of several fields
# Fields of a preset that say nothing of a run by themselves, and what to vary in their place.
NO_FACTORS = {
    "title": "it changes no run",
    "n_seeds": "give the study n_seeds",
    "recipe": "vary a component with the factor alternative.NAME",
}
MAX_CELLS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """One level of a factor: what it is called, its place on a line if it is a number, and the fields that it sets."""

    label: str
    number: float | None
    settings: Mapping[str, Any]  # dotted field of the preset, alternative.COMPONENT, or preset


@dataclass(frozen=True, kw_only=True, slots=True)
class Factor:
    """What varies, its reference level first."""

    name: str  # of the field; of an alternative the component; of linked fields any name
    levels: tuple[Level, ...]

    @property
    def fields(self) -> frozenset[str]:
        """Every field that some level sets."""
        return frozenset(path for level in self.levels for path in level.settings)

    @property
    def components(self) -> tuple[str, ...]:
        """The components whose level it sets."""
        return tuple(sorted(p.removeprefix(ALTERNATIVE) for p in self.fields if p.startswith(ALTERNATIVE)))

    def facts(self) -> FactorFacts:
        """What the plan keeps of it."""
        return FactorFacts(
            name=self.name,
            levels=tuple(level.label for level in self.levels),
            numbers=tuple(level.number for level in self.levels),
            components=self.components,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class FactorFacts:
    """A factor as the plan's file has it; each variant has its level under `name` among its levels."""

    name: str
    levels: tuple[str, ...]  # the reference first
    numbers: tuple[float | None, ...]  # the same as numbers, where they are
    components: tuple[str, ...] = ()  # whose level it sets

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN

    @property
    def positions(self) -> tuple[float, ...] | None:
        """Where the levels lie on a line; None where they have no order."""
        known = tuple(number for number in self.numbers if number is not None)
        return known if len(known) == len(self.levels) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A level for each factor."""

    levels: Mapping[str, str]  # factor -> label
    settings: Mapping[str, Any]  # of all its levels together

    @property
    def label(self) -> str:
        """As in "moe.n_routed_experts=32, preset=cpu"; empty where there are no factors."""
        return ", ".join(f"{name}={level}" for name, level in self.levels.items())

    def alternatives(self) -> dict[str, str]:
        """Component -> its level, of those that factors set."""
        return {p.removeprefix(ALTERNATIVE): v for p, v in self.settings.items() if p.startswith(ALTERNATIVE)}


def cells(factors: Sequence[Factor]) -> list[Cell]:
    """Every combination of levels, the reference first; one cell without levels where there are no factors."""
    n_cells = math.prod(len(factor.levels) for factor in factors)
    if n_cells > MAX_CELLS:
        raise ValueError(f"the factors have {n_cells:,} combinations of levels; at most {MAX_CELLS:,} are planned")
    return [
        Cell(
            levels={factor.name: level.label for factor, level in zip(factors, chosen, strict=True)},
            settings={path: value for level in chosen for path, value in level.settings.items()},
        )
        for chosen in itertools.product(*(factor.levels for factor in factors))
    ]


def read_factors(data: Mapping[str, Any]) -> tuple[Factor, ...]:
    """The factors of a study file's table `factors`: field -> its levels.

    A level is a value of the field, or a table of several fields that go together, with its `label` if it has one. A
    field that is written without quotes, as in moe.n_routed_experts = [16, 32], is a table for TOML and is meant too.
    ValueError for a factor with fewer than two levels, equal levels, or a field that two factors set.
    """
    found = tuple(_factor(name, levels) for name, levels in _flat(data, ""))
    for one, other in itertools.combinations(found, 2):
        if both := sorted(one.fields & other.fields) or sorted({one.name} & {other.name}):
            raise ValueError(f"factors: {one.name} and {other.name} both set {both[0]}; a field belongs to one factor")
        for name in set(one.components) & set(other.components):
            raise ValueError(f"factors: {one.name} and {other.name} both set the level of {name}; one of them can")
    return found


def _flat(data: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _factor(name: str, levels: Any) -> Factor:
    if not isinstance(levels, list | tuple):
        raise ValueError(f"factors.{name} is {levels!r}; it takes a list of levels, the reference first: [1, 2]")
    if len(levels) < 2:
        raise ValueError(f"factors.{name} has {len(levels)} level; it takes at least two, the reference first")
    if name in NO_FACTORS:
        raise ValueError(f"factors: {name} cannot be a factor: {NO_FACTORS[name]}")
    tables = [isinstance(level, Mapping) for level in levels]
    if any(tables) and not all(tables):
        raise ValueError(f"factors.{name} mixes values with tables of several fields; write every level the same way")
    made = tuple(_linked(name, level) if isinstance(level, Mapping) else _single(name, level) for level in levels)
    labels = [level.label for level in made]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"factors.{name} has the level {label} {labels.count(label)} times; levels differ")
    return Factor(name=name.removeprefix(ALTERNATIVE), levels=made)


def _single(name: str, value: Any) -> Level:
    if name == PRESET and not isinstance(value, str):
        raise ValueError(f"factors.preset has the level {value!r}; it takes names of presets, or paths of their files")
    if name.startswith(ALTERNATIVE):
        _check_alternative(name, value)
    return Level(label=_label(value), number=_number(value), settings={name: value})


def _linked(name: str, table: Mapping[str, Any]) -> Level:
    """Several fields that go together."""
    label = table.get(LABEL)
    settings = dict(_flat({key: value for key, value in table.items() if key != LABEL}, ""))
    if not settings:
        raise ValueError(f"factors.{name} has a level that sets no field; write its fields: {{ 'trainer.x' = 1 }}")
    for path, value in settings.items():
        if path in NO_FACTORS:
            raise ValueError(f"factors.{name}: {path} cannot be a factor: {NO_FACTORS[path]}")
        if path.startswith(ALTERNATIVE):
            _check_alternative(path, value)
    if label is None:
        label = " ".join(f"{path.rpartition('.')[2]}={_label(value)}" for path, value in settings.items())
    return Level(label=_label(label), number=_number(label), settings=settings)


def _check_alternative(path: str, level: Any) -> None:
    """ValueError for a component or a level of it that there is not."""
    found = component(path.removeprefix(ALTERNATIVE))
    if not isinstance(level, str):
        raise ValueError(f"factors: {path} has the level {level!r}; it takes {ON!r} or the name of an alternative")
    if level != ON:
        found.alternative(level)


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _number(value: Any) -> float | None:
    """The value as a place on a line; None for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
