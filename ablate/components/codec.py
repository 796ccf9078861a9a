"""Nodes and specifications from plain data: a node by the kind that it names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ablate.components.registry import COMPONENTS, kind
from ablate.errors import nearest
from ablate.spec.backends import Backend
from ablate.spec.decoding import decode
from ablate.spec.model import Init, ModelSpec
from ablate.spec.nodes import SLOTS
from ablate.spec.run import RunSpec, TrainerSpec

MODEL_DEFAULTS = [f.name for f in dataclasses.fields(ModelSpec) if f.default is not dataclasses.MISSING]


def node_types(slot: str) -> dict[str, type]:
    """Nodes that may fill a slot, by kind."""
    # A dense feed-forward of any layer may be that of the first ones.
    slots = ("first_feed_forward", "feed_forward") if slot == "first_feed_forward" else (slot,)
    return {kind(t): t for c in COMPONENTS for each in slots for t in c.nodes.get(each, ())}


def decode_node(slot: str, data: Any, path: str) -> Any:
    """The node that `data["kind"]` names."""
    where, types = f"{path}.{slot}".strip("."), node_types(slot)
    if not isinstance(data, Mapping) or "kind" not in data:
        raise ValueError(f"{where} must be a table with a kind; there are: {', '.join(types)}")
    if data["kind"] not in types:
        raise ValueError(f"{where}.kind is {data['kind']!r}; {nearest(str(data['kind']), types)}")
    return decode(types[data["kind"]], dict(data), where)


def decode_model(data: Mapping[str, Any], path: str = "model") -> ModelSpec:
    """A model from plain data; every slot by its kind."""
    known = {f.name: f.type for f in dataclasses.fields(ModelSpec)}
    for name in data:
        if name not in known:
            raise ValueError(f"{path}.{name} is unknown; {nearest(name, known)}")
    values: dict[str, Any] = {}
    for name, declared in known.items():
        if name not in data:
            if name in MODEL_DEFAULTS:
                continue
            raise ValueError(f"{path}.{name} is missing")
        if name in SLOTS:
            empty = name == "balance" and data[name] is None
            values[name] = None if empty else decode_node(name, data[name], path)
        else:
            values[name] = decode(FIELD_TYPES[declared], data[name], f"{path}.{name}")
    return ModelSpec(**values)


FIELD_TYPES: dict[Any, Any] = {"int": int, "float": float, "Init": Init, "Backend": Backend}


def decode_run(data: Mapping[str, Any]) -> RunSpec:
    """A run's specification as `encode` wrote it."""
    rest = {k: data[k] for k in ("corpus_hash", "seed", "n_steps", "schema_version")}
    return RunSpec(
        model=decode_model(data["model"]),
        text=decode_node("text", data["text"], ""),
        trainer=decode(TrainerSpec, data["trainer"], "trainer"),
        **rest,
    )
