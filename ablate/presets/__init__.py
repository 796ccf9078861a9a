"""Named sizes: each TOML file here gives what all variants of a preset share, and each component's own numbers."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from ablate.components.codec import FIELD_TYPES
from ablate.components.distill.spec import RawText
from ablate.components.fp8.spec import StandardLinear
from ablate.components.mla.spec import GroupedQueryAttention
from ablate.components.moe.spec import SwiGLU
from ablate.components.mtp.spec import NextToken
from ablate.components.registry import COMPONENTS, NAMES, component
from ablate.errors import nearest
from ablate.spec.decoding import decode
from ablate.spec.model import Init, ModelSpec
from ablate.spec.run import DataSpec, Preset, TrainerSpec

SECTIONS = ("title", "n_tokens", "n_seeds", "recipe", "model", "attention", "init", "trainer", "data")
MODEL_FIELDS = {"dim", "n_layers", "vocab_size", "n_first_layers", "hidden_dim", "rope_theta", "norm_eps"}
MODEL_OPTIONS = {"norm_backend", "head_backend"}


def names() -> tuple[str, ...]:
    """The presets there are, sorted."""
    folder = resources.files(__name__)
    return tuple(sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml")))


@cache
def preset(name: str) -> Preset:
    """The preset of that name; ValueError names the nearest."""
    if name not in names():
        raise ValueError(f"unknown preset {name!r}; {nearest(name, names())}")
    text = (resources.files(__name__) / f"{name}.toml").read_text(encoding="utf-8")
    return parse(name, tomllib.loads(text))


def preset_file(path: Path) -> Preset:
    """A preset of the user's own."""
    try:
        return parse(path.stem, tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"cannot read the preset {path}: {error}") from None


def parse(name: str, data: Mapping[str, Any]) -> Preset:
    """A preset from plain data. The dense end of the model is filled in; components replace its slots."""
    components = {c.name: c.settings for c in COMPONENTS if c.settings is not None}
    for section in data:
        if section not in SECTIONS and section not in components:
            raise ValueError(f"{name}: {section} is unknown; {nearest(section, [*SECTIONS, *components])}")
    for section in SECTIONS:
        if section not in data:
            raise ValueError(f"{name}: {section} is missing")
    return Preset(
        name=name,
        title=data["title"],
        model=_model(data),
        data=DataSpec(text=RawText(), **data["data"]),
        trainer=decode(TrainerSpec, data["trainer"], "trainer"),
        n_tokens=int(data["n_tokens"]),
        n_seeds=data["n_seeds"],
        recipe=_recipe(name, data),
        settings={key: decode(kind, dict(data[key]), key) for key, kind in components.items() if key in data},
    )


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


def _model(data: Mapping[str, Any]) -> ModelSpec:
    model = dict(data["model"])
    for field in model:
        if field not in MODEL_FIELDS | MODEL_OPTIONS:
            raise ValueError(f"model.{field} is unknown; {nearest(field, MODEL_FIELDS | MODEL_OPTIONS)}")
    for field in MODEL_FIELDS:
        if field not in model:
            raise ValueError(f"model.{field} is missing")
    backends = {f: decode(FIELD_TYPES["Backend"], model.pop(f), f"model.{f}") for f in MODEL_OPTIONS if f in model}
    dense = SwiGLU(hidden_dim=model.pop("hidden_dim"))
    return ModelSpec(
        **model,
        **backends,
        first_feed_forward=dense,
        attention=decode(GroupedQueryAttention, data["attention"], "attention"),
        feed_forward=dense,
        balance=None,
        objective=NextToken(),
        linear=StandardLinear(),
        init=decode(Init, data["init"], "init"),
    )
