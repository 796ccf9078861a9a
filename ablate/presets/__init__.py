"""Named sizes: each TOML file here gives what all variants of a preset share, and each component's own numbers."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from ablate.components.codec import decode_model, decode_spec
from ablate.components.registry import COMPONENTS, NAMES, component
from ablate.documents import read_toml
from ablate.errors import nearest
from ablate.spec.decoding import decode
from ablate.spec.model import ModelSpec
from ablate.spec.run import DataSpec, Preset, TrainerSpec

SECTIONS = (
    "title",
    "n_tokens",
    "n_seeds",
    "recipe",
    "model",
    "attention",
    "norm",
    "init",
    "trainer",
    "optimizer",
    "data",
)
OPTIONAL_SECTIONS = ("head",)
PLAIN = ("title", "n_tokens", "n_seeds", "recipe")  # the others are tables
OPTIMIZER_FIELDS = ("weight_decay", "beta1", "beta2", "epsilon")
MODEL_FIELDS = ("dim", "n_layers", "vocab_size", "n_first_layers", "hidden_dim", "rope_theta")
OPTIONAL_MODEL_FIELDS = ("residual_dtype",)


def names() -> tuple[str, ...]:
    """The presets there are, sorted."""
    folder = resources.files(__name__)
    return tuple(sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml")))


@cache
def preset(name: str) -> Preset:
    """The preset of that name; ValueError names the nearest."""
    return parse(name, tomllib.loads(_text(name)))


def _text(name: str) -> str:
    if name not in names():
        raise ValueError(f"unknown preset {name!r}; {nearest(name, names())}")
    return (resources.files(__name__) / f"{name}.toml").read_text(encoding="utf-8")


def preset_file(path: Path) -> Preset:
    """A preset of the user's own."""
    return parse(path.stem, _read(path))


def _read(path: Path) -> dict[str, Any]:
    return read_toml(path, "the preset", "give a name, or a TOML file like those of ablate/presets")


def preset_with(name: str, fields: Mapping[str, Any]) -> Preset:
    """A preset, by name or by the path of its file, with other values of some fields (dotted, as in `moe.route_scale`).

    ValueError for a field that there is not, or a value that it cannot have.
    """
    if not fields:
        return preset_file(Path(name)) if name.endswith(".toml") else preset(name)
    data = _read(Path(name)) if name.endswith(".toml") else tomllib.loads(_text(name))
    for path, value in fields.items():
        section, dot, field = path.rpartition(".")
        if not dot:
            data[path] = value
        elif isinstance(inner := data.setdefault(section, {}), dict):
            inner[field] = value
        else:
            raise ValueError(f"{path} is no field of a preset: {section} is no table")
    return parse(Path(name).stem if name.endswith(".toml") else name, data)


def parse(name: str, data: Mapping[str, Any]) -> Preset:
    """A preset from plain data. The dense end of the model is filled in; components replace its slots."""
    components = {c.name: c.settings for c in COMPONENTS if c.settings is not None}
    if "layers" in data:
        raise ValueError(
            f"{name} has groups of layers: `account --model` prices it and nothing trains it; choose a preset"
        )
    for section, content in data.items():
        if section not in PLAIN and not isinstance(content, Mapping):
            raise ValueError(f"{name}: {section} is no table; write its fields under [{section}]")
    data = _as_written_now(data, components)
    for section in data:
        known = (*SECTIONS, *OPTIONAL_SECTIONS, *components)
        if section not in known:
            raise ValueError(f"{name}: {section} is unknown; {nearest(section, known)}")
    for section in SECTIONS:
        if section not in data:
            raise ValueError(f"{name}: {section} is missing")
    return Preset(
        name=name,
        title=data["title"],
        model=_model(data),
        data=decode_spec(DataSpec, {"text": {"kind": "raw"}} | data["data"], "data"),
        trainer=_trainer(data),
        n_tokens=decode(int, data["n_tokens"], "n_tokens"),
        n_seeds=decode(int, data["n_seeds"], "n_seeds"),
        recipe=_recipe(name, data),
        settings={key: decode(kind, dict(data[key]), key) for key, kind in components.items() if key in data},
    )


def _as_written_now(data: Mapping[str, Any], components: Iterable[str]) -> Mapping[str, Any]:
    """A preset file of version 1 in today's sections: the norm, the optimizer and the recipe had none of their own."""
    model, trainer = dict(data.get("model", {})), dict(data.get("trainer", {}))
    if "norm_eps" not in model or "norm" in data:
        return data
    moved = {name: trainer.pop(name) for name in OPTIMIZER_FIELDS if name in trainer}
    return {
        "recipe": [name for name in components if name in data],
        **data,
        "norm": {"eps": model.pop("norm_eps")},
        "optimizer": moved,
        "model": model,
        "trainer": trainer,
    }


def _recipe(name: str, data: Mapping[str, Any]) -> tuple[str, ...]:
    """What the full variant has on; ValueError for a component that there is not, or whose sizes are not here."""
    recipe: tuple[str, ...] = decode(tuple[str, ...], data["recipe"], "recipe")
    for each in recipe:
        if each not in NAMES:
            raise ValueError(f"preset {name}: the recipe names {each!r}; {nearest(each, NAMES)}")
        if component(each).settings is not None and each not in data:
            raise ValueError(
                f"preset {name}: the recipe names {each}, and there is no section [{each}] with its sizes; "
                f"write one, or take {each} out of the recipe"
            )
    return recipe


def _trainer(data: Mapping[str, Any]) -> TrainerSpec:
    optimizer = {"kind": "adamw"} | data["optimizer"]
    return decode_spec(TrainerSpec, data["trainer"] | {"optimizer": optimizer}, "trainer")


def _model(data: Mapping[str, Any]) -> ModelSpec:
    """The dense end: every slot at what it holds while no component fills it."""
    model = dict(data["model"])
    for field in model:
        if field not in (known := (*MODEL_FIELDS, *OPTIONAL_MODEL_FIELDS)):
            raise ValueError(f"model.{field} is unknown; {nearest(field, known)}")
    for field in MODEL_FIELDS:
        if field not in model:
            raise ValueError(f"model.{field} is missing")
    dense = {"kind": "swiglu", "hidden_dim": model.pop("hidden_dim")}
    slots = {
        "first_feed_forward": dense,
        "feed_forward": dense,
        "attention": {"kind": "gqa"} | data["attention"],
        "balance": None,
        "objective": {"kind": "next-token"},
        "linear": {"kind": "standard"},
        "norm": {"kind": "rms"} | data["norm"],
        "head": {"kind": "linear-head"} | data.get("head", {}),
    }
    return decode_model(model | slots | {"init": data["init"]})
