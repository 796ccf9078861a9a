"""Specifications from plain data: the nodes that may fill each slot are those of the registered components."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from ablate.components.registry import COMPONENTS, kind
from ablate.model.nodes import BASE_NODES
from ablate.spec.decoding import NodeTypes, decode
from ablate.spec.model import ModelSpec
from ablate.spec.run import RunSpec

T = TypeVar("T")


@cache
def node_types() -> NodeTypes:
    """Slot -> kind -> type. Whatever may fill `feed_forward` may fill `first_feed_forward` too."""
    found: dict[str, dict[str, type]] = {"first_feed_forward": {}}
    for nodes in (BASE_NODES, *(component.nodes for component in COMPONENTS)):
        for slot, types in nodes.items():
            found.setdefault(slot, {}).update({kind(each): each for each in types})
    found["first_feed_forward"] = found["feed_forward"] | found["first_feed_forward"]
    return found


def decode_spec(cls: type[T], data: Any, path: str) -> T:
    """A value with nodes in it; ValueError with the path of everything that is wrong."""
    return decode(cls, data, path, node_types())


def decode_model(data: Mapping[str, Any], path: str = "model") -> ModelSpec:
    """A model from plain data; every slot by its kind."""
    return decode_spec(ModelSpec, dict(data), path)


def decode_run(data: Mapping[str, Any]) -> RunSpec:
    """A run's specification as `encode` wrote it."""
    return decode_spec(RunSpec, dict(data), "")
