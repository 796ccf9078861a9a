"""A field of a preset by its path, as a search varies it: `trainer.learning_rate`, `moe.n_routed_experts`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ablate.errors import nearest
from ablate.spec.run import Preset

# What all trials have equal, or they could not be compared: the text, how it is judged, and the shape of the schedule.
FIXED = {
    "trainer": ("sequence_length", "n_evaluations", "n_held_out_windows", "n_curve_windows", "branches", "control"),
    "model": ("vocab_size",),
}
MODEL_SLOTS = ("attention", "norm", "head", "init")


def sections(base: Preset) -> dict[str, Any]:
    """Section of a preset file -> the value that holds its fields."""
    return {
        "trainer": base.trainer,
        "optimizer": base.trainer.optimizer,
        "model": base.model,
        **{name: getattr(base.model, name) for name in MODEL_SLOTS},
        **{name: node for name, node in base.settings.items() if dataclasses.is_dataclass(node)},
    }


def value_of(base: Preset, path: str) -> Any:
    """What a field holds; ValueError with the nearest name where there is no such field, or it is the same for all."""
    known = sections(base)
    section, _, name = path.partition(".")
    if section not in known or not name:
        places = [f"{each}.{f.name}" for each, value in known.items() for f in dataclasses.fields(value)]
        raise ValueError(
            f"search.parameters names {path!r}, which the preset {base.name} has not; {nearest(path, places)}"
        )
    names = [f.name for f in dataclasses.fields(known[section]) if _is_plain(getattr(known[section], f.name))]
    if name in FIXED.get(section, ()):
        raise ValueError(
            f"search.parameters names {path}, which every trial has equal: losses under another one are not comparable"
        )
    if name not in names:
        raise ValueError(f"search.parameters names {path!r}; {nearest(name, names)}")
    return getattr(known[section], name)


def with_fields(base: Preset, values: Mapping[str, Any]) -> Preset:
    """The preset with other values in these fields; ValueError as its own checks say it."""
    for path, value in values.items():
        value_of(base, path)
        section, _, name = path.partition(".")
        changed = dataclasses.replace(sections(base)[section], **{name: value})
        base = _with_section(base, section, changed)
    return base


def _with_section(base: Preset, section: str, value: Any) -> Preset:
    if section == "trainer":
        return dataclasses.replace(base, trainer=value)
    if section == "optimizer":
        return dataclasses.replace(base, trainer=dataclasses.replace(base.trainer, optimizer=value))
    if section == "model":
        return dataclasses.replace(base, model=value)
    if section in MODEL_SLOTS:
        return dataclasses.replace(base, model=dataclasses.replace(base.model, **{section: value}))
    return dataclasses.replace(base, settings={**base.settings, section: value})


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool)
