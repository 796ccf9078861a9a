"""Specifications to and from plain data: strict at the file edge, with errors that name the path."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from ablate.backends import Backend
from ablate.registry import COMPONENTS, nearest
from ablate.spec import SLOTS, Init, ModelSpec, RunSpec, TrainerSpec

T = TypeVar("T")
MODEL_DEFAULTS = [f.name for f in dataclasses.fields(ModelSpec) if f.default is not dataclasses.MISSING]


def decode(cls: type[T], data: Any, path: str) -> T:
    """`data` as a frozen dataclass. ValueError with the path of what is missing, unknown or of a wrong type."""
    import pydantic

    try:
        return pydantic.TypeAdapter(cls).validate_python(data)
    except pydantic.ValidationError as error:
        raise ValueError("; ".join(_sentence(e, path, cls) for e in error.errors())) from None


def _sentence(error: Any, path: str, cls: type) -> str:
    where = ".".join([path, *(str(part) for part in error["loc"])]).strip(".")
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        names = [f.name for f in dataclasses.fields(cls)]
        return f"{where} is unknown; {nearest(str(error['loc'][-1]), names)}"
    if error["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{where} is missing"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return f"{where} is {error['input']!r}: {error['msg'].lower()}"


def node_types(slot: str) -> dict[str, type]:
    """Nodes that may fill a slot, by kind."""
    slot = "feed_forward" if slot == "first_feed_forward" else slot
    types = [t for c in COMPONENTS for t in c.nodes.get(slot, ())]
    return {_kind(t): t for t in types}


def _kind(node: Any) -> str:
    """The kind of a node's class: the default of its field `kind`."""
    return next(str(f.default) for f in dataclasses.fields(node) if f.name == "kind")


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
    for name, kind in known.items():
        if name not in data:
            if name in MODEL_DEFAULTS:
                continue
            raise ValueError(f"{path}.{name} is missing")
        if name in SLOTS:
            empty = name == "balance" and data[name] is None
            values[name] = None if empty else decode_node(name, data[name], path)
        else:
            values[name] = decode(FIELD_TYPES[kind], data[name], f"{path}.{name}")
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


def encode(value: Any) -> dict[str, Any]:
    """A dataclass as plain data, nodes with their kind."""
    return dataclasses.asdict(value)


def canonical(data: Any) -> str:
    """One text for equal data: sorted keys, no spaces, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def run_id(run: RunSpec) -> str:
    """The run's name: 16 hexadecimal digits of the hash of its canonical JSON."""
    return hashlib.sha256(canonical(encode(run)).encode()).hexdigest()[:16]
