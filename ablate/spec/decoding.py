"""Values to and from plain data: strict at the file edge, with errors that name the path."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any, TypeVar

from ablate.errors import nearest

T = TypeVar("T")
FORBID_UNKNOWN = {"extra": "forbid"}  # read by pydantic at the file edge


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


def encode(value: Any) -> dict[str, Any]:
    """A dataclass as plain data, nodes with their kind."""
    return dataclasses.asdict(value)


def canonical(data: Any) -> str:
    """One text for equal data: sorted keys, no spaces, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def run_id(run: Any) -> str:
    """The run's name: 16 hexadecimal digits of the hash of its canonical JSON."""
    return hashlib.sha256(canonical(encode(run)).encode()).hexdigest()[:16]
