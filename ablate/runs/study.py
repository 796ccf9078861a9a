"""A study: a question, the variants that answer it, what they have equal, and the file that repeats it."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from ablate.codec import decode
from ablate.component import ON
from ablate.presets import preset, preset_file
from ablate.registry import (
    COMPONENTS,
    NAMES,
    component,
    describe,
    full_variant,
    nearest,
    none_variant,
    resolve,
    unmet,
    without,
)
from ablate.spec import FORBID_UNKNOWN, Preset, Spec

Match = Literal["flops", "tokens", "seconds"]
Design = Literal["one", "leave-one-out", "add-one-in", "first-last", "lattice"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """What a study file says. Every field that is left out has the preset's value or the default written here."""

    question: str
    preset: str  # a name, or the path of a preset file
    design: Design = "one"
    disable: tuple[str, ...] = ()  # what the design turns off: all together with `one`, each with the others
    enable: tuple[str, ...] = ()  # the same, starting from nothing on
    without: tuple[str, ...] = ()  # off in every variant, and not part of the question
    alternatives: Mapping[str, str] = field(default_factory=dict)
    match: Match = "flops"
    budget: float | None = None  # of a run: training FLOPs, tokens or seconds, as `match` says
    n_seeds: int | None = None
    first_seed: int = 0
    margin_nats: float = 0.005  # differences up to this size are of no interest
    confidence: float = 0.95
    data: str = ""  # the corpus; empty: the preset's
    max_bytes: int | None = None
    trainer: Mapping[str, Any] = field(default_factory=dict)  # fields of the preset's trainer to replace
    learning_rates: Mapping[str, float] = field(default_factory=dict)  # variant -> its own tuned rate

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN

    def __post_init__(self) -> None:
        for name in (*self.disable, *self.enable, *self.without):
            component(name)
        for name, alternative in self.alternatives.items():
            component(name).alternative(alternative)
        if self.disable and self.enable:
            raise ValueError(
                "both disable and enable were given: disable starts from the full recipe and enable from none of it; "
                "give one of them, or a study file with a design"
            )
        if self.n_seeds is not None and self.n_seeds < 1:
            raise ValueError(f"n_seeds is {self.n_seeds}; it must be at least 1, and at least 2 for an interval")
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"budget is {self.budget}; it must be more than 0")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}; it must lie between 0 and 1")
        if self.margin_nats < 0:
            raise ValueError(f"margin_nats is {self.margin_nats}; it must be 0 or more")

    def load_preset(self) -> Preset:
        """The preset, with the study's own corpus and trainer fields."""
        found = preset_file(Path(self.preset)) if self.preset.endswith(".toml") else preset(self.preset)
        data = found.data
        if self.data:
            data = dataclasses.replace(data, source=self.data)
        if self.max_bytes is not None:
            data = dataclasses.replace(data, max_bytes=self.max_bytes)
        trainer = decode(type(found.trainer), dataclasses.asdict(found.trainer) | dict(self.trainer), "trainer")
        return dataclasses.replace(found, data=data, trainer=trainer)


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedVariant:
    """A variant of a study, its levels and its specification."""

    name: str
    levels: Mapping[str, str]
    spec: Spec


def variants(study: Study, base: Preset) -> list[NamedVariant]:
    """The variants of a study's design, the reference first; ValueError where it has none or one is impossible."""
    full = without(full_variant(base), study.without, study.alternatives)
    targets = study.disable or study.enable
    levels: list[dict[str, str]]
    if study.design == "one":
        levels = _one(study, full)
    else:
        names = targets or tuple(name for name in NAMES if full[name] == ON)
        levels = [_subset(study, full, names, on) for on in _subsets(study.design, names)]
    for name, alternative in study.alternatives.items():
        if not any(level[name] == alternative for level in levels):
            raise ValueError(
                f"alternative {name}={alternative} has no effect: no variant of this study has {name} off; "
                f"disable {name} too, or leave the alternative out"
            )
    unique = {tuple(level.items()): level for level in levels}
    return [_named(level, full, study, base) for level in unique.values()]


def _one(study: Study, full: Mapping[str, str]) -> list[dict[str, str]]:
    if study.enable:
        # What a component requires is on beside it and without it: add-one-in of aux-free is against moe alone.
        required = {r for name in study.enable for r in component(name).requires if r not in study.enable}
        without_them = none_variant() | dict(study.alternatives) | dict.fromkeys(required, ON)
        return [without_them | dict.fromkeys(study.enable, ON), without_them]
    if not study.disable:
        raise ValueError("nothing to compare: name at least one component with --disable or --enable")
    for name in study.disable:
        if full[name] != ON:
            raise ValueError(
                f"{name} is off in every variant of this study already (preset {study.preset}, "
                f"without {', '.join(study.without) or 'nothing'}); "
                f"disable one of: {', '.join(n for n in full if full[n] == ON) or 'nothing, choose another preset'}"
            )
    other = without(full, study.disable, study.alternatives)
    return [dict(full), other]


def _subsets(design: str, names: Sequence[str]) -> list[frozenset[str]]:
    """Sets of components that are on. Infeasible ones are mended by `_subset` and then fall together."""
    everything = frozenset(names)
    last = [everything, *(everything - {name} for name in names)]
    first = [frozenset[str](), *(frozenset({name}) for name in names)]
    if design == "leave-one-out":
        return last
    if design == "add-one-in":
        return first
    if design == "first-last":
        return last + first
    cells = [frozenset(n for i, n in enumerate(names) if mask >> i & 1) for mask in range(2 ** len(names))]
    return sorted(cells, key=lambda cell: -len(cell))


def _subset(study: Study, full: Mapping[str, str], names: Sequence[str], on: frozenset[str]) -> dict[str, str]:
    """Levels with `on` of `names` on. A component whose prerequisite is off goes off; one added first brings it."""
    level = without(full, [name for name in names if name not in on], study.alternatives)
    if study.design == "add-one-in":
        for name in on:
            for requirement in component(name).requires:
                level[requirement] = ON
            level[name] = ON
    return level


def _named(level: dict[str, str], full: Mapping[str, str], study: Study, base: Preset) -> NamedVariant:
    assert not unmet(level)
    none = none_variant() | {k: v for k, v in study.alternatives.items() if level[k] == v}
    added = [name for name in NAMES if level[name] == ON]
    name = describe(level, full)
    if not added:
        name = "none" if level == none else describe(level, none_variant())
    elif (
        level != full
        and len(added) < sum(full[n] == ON for n in NAMES) / 2
        and level == none | dict.fromkeys(added, ON)
    ):
        name = " ".join(f"+{n}" for n in added)
    spec = resolve(base, level)
    if name in study.learning_rates:
        rate = study.learning_rates[name]
        spec = dataclasses.replace(spec, trainer=dataclasses.replace(spec.trainer, learning_rate=rate))
    return NamedVariant(name=name, levels=level, spec=spec)


def read_study(path: Path) -> Study:
    """The study of a TOML file; ValueError names the file and what is wrong in it."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"cannot read the study {path}: {error}") from None
    unknown = [key for key in data if key not in {f.name for f in dataclasses.fields(Study)}]
    if unknown:
        names = [f.name for f in dataclasses.fields(Study)]
        raise ValueError(f"{path}: {unknown[0]} is unknown; {nearest(unknown[0], names)}")
    try:
        return decode(Study, data, "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def to_toml(study: Study) -> str:
    """The study as a file; what has the default value is left out."""
    lines, tables = [], []
    for f in dataclasses.fields(Study):
        value = getattr(study, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if value is None or value == default:
            continue
        if isinstance(value, Mapping):
            tables += ["", f"[{f.name}]", *(f"{_key(key)} = {_toml(item)}" for key, item in value.items())]
        else:
            lines.append(f"{f.name} = {_toml(value)}")
    return "\n".join(lines + tables) + "\n"


def _key(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() else _toml(key)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped) + '"'
    return "[" + ", ".join(_toml(item) for item in value) + "]"


def unavailable(data: str) -> tuple[str, ...]:
    """Components that a corpus other than the preset's own leaves off in every variant."""
    return tuple(c.name for c in COMPONENTS if data and c.tied_to_corpus)


def question(disable: Sequence[str], enable: Sequence[str], alternatives: Mapping[str, str]) -> str:
    """What a comparison of the command line asks, in words."""

    def title(name: str) -> str:
        chosen = component(name)
        against = f" (against {alternatives[name]})" if name in alternatives else ""
        return f"{chosen.title}{against}"

    names = " and ".join(title(name) for name in disable or enable)
    whole = "the full recipe" if disable else "the dense baseline"
    return f"What is {names} worth in {whole}?" if names else ""
