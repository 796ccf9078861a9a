"""Values to and from plain data: strict at the file edge, with errors that name the path."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, TypeVar

from ablate.errors import nearest

T = TypeVar("T")
MAY_BE_EMPTY = ("balance", "pipeline", "transport")  # slots
NodeTypes = Mapping[str, Mapping[str, type]]  # slot -> kind -> type
# Read by pydantic at the file edge; a number there is finite.
FORBID_UNKNOWN = {"extra": "forbid", "allow_inf_nan": False}


@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
    """Annotation of a field that holds a node: it is decoded as the type that `kind` names among those of the slot.

    The types come with the call of `decode`, so that values do not know which components there are.
    """

    name: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.with_info_plain_validator_function(self._node)

    def _node(self, data: Any, info: Any) -> Any:
        import pydantic

        types = info.context[self.name]
        if data is None and self.name in MAY_BE_EMPTY:
            return None
        if not isinstance(data, Mapping) or not isinstance(data.get("kind"), str):
            raise WrongValue(f"{{}} must be a table with a kind; there are: {', '.join(types)}")
        if data["kind"] not in types:
            raise WrongValue(f"{{}}.kind is {data['kind']!r}; {nearest(str(data['kind']), types)}")
        cls = types[data["kind"]]
        try:
            return _adapter(cls).validate_python(dict(data), context=info.context)
        except pydantic.ValidationError as error:
            raise _FaultsOfNode(cls, error.errors()) from None


class WrongValue(ValueError):
    """What is wrong with a value that was read; the message has a place for the path to it."""


class _FaultsOfNode(ValueError):
    """What is wrong inside a node, with paths from the node on."""

    def __init__(self, cls: type, errors: Any) -> None:
        super().__init__()
        self.cls, self.errors = cls, errors


@cache
def _adapter(cls: Any) -> Any:
    """What reads a class: making it takes ten times as long as reading a value."""
    import pydantic

    return pydantic.TypeAdapter(cls)


def decode(cls: type[T], data: Any, path: str, nodes: NodeTypes = MappingProxyType({})) -> T:
    """`data` as a frozen dataclass; `nodes`: the types that fill each slot in it, by slot and kind.

    ValueError with the path of everything that is missing, unknown or of a wrong type.
    """
    import pydantic

    try:
        read: T = _adapter(cls).validate_python(data, context=nodes)  # type: ignore[arg-type]
        return read
    except pydantic.ValidationError as error:
        raise ValueError("; ".join(_sentences(error.errors(), path, cls))) from None


def _sentences(errors: Any, path: str, cls: type) -> Iterator[str]:
    for error in errors:
        where = ".".join([path, *(str(part) for part in error["loc"])]).strip(".")
        cause = error.get("ctx", {}).get("error")
        if isinstance(cause, _FaultsOfNode):
            yield from _sentences(cause.errors, where, cause.cls)
        elif isinstance(cause, WrongValue):
            yield str(cause).format(where)
        elif cause is not None:
            yield str(cause)
        elif error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            known = [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
            yield f"{where} is unknown; {nearest(str(error['loc'][-1]), known)}"
        elif error["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
            yield f"{where} is missing"
        else:
            yield f"{where} is {_shown(error['input'])}: {error['msg'].lower()}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]} ... ({len(text):,} characters)"


# Metadata of a field that is written only where it is not at its default: a run without it keeps its name.
UNWRITTEN_DEFAULT = MappingProxyType({"unwritten": True})


def encode(value: Any) -> dict[str, Any]:
    """A dataclass as plain data, as JSON gives it back: lists and no tuples; nodes with their kind.

    Fields with `UNWRITTEN_DEFAULT` are left out where they are at their default.
    """
    plain: dict[str, Any] = _plain(value)
    return plain


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = [(f, getattr(value, f.name)) for f in dataclasses.fields(value)]
        return {f.name: _plain(item) for f, item in fields if not (f.metadata.get("unwritten") and item == f.default)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def canonical(data: Any) -> str:
    """One text for equal data: sorted keys, no spaces, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def run_id(run: Any) -> str:
    """The run's name: `data_id` of its plain data."""
    return data_id(encode(run))


def data_id(data: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of the hash of a specification's canonical JSON."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()[:16]
