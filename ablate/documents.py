"""Reading JSON and TOML: strictly, with the seals of the program's own documents, each fault told in one sentence.

Whatever a file holds, reading it gives plain data or a ValueError. No number in it is NaN, infinite or beyond a float,
no key stands twice, no text holds half a character, and nothing is nested deeper than those who use it can follow.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SEAL = "sha256"  # key of a sealed document's digest
MAX_DEPTH = 64
OWN_SEAL = re.compile(rf'^ "{SEAL}": "([0-9a-f]{{64}})"', re.MULTILINE)


def read_document(path: Path, what: str, cure: str) -> dict[str, Any]:
    """What `ablate.files.sealed` was given. A document of an earlier version, which has no seal, is read as it is.

    ValueError: "cannot read `what` `path`: the reason; `cure`", if it was altered too.
    """
    return _read(path, what, cure, lambda text: _opened(text)[0])


def read_sealed_document(path: Path, what: str, cure: str) -> dict[str, Any]:
    """What `ablate.files.sealed` was given; ValueError as of `read_document`, and where there is no seal."""
    return _read(path, what, cure, _surely_sealed)


def read_json(path: Path, what: str, cure: str) -> Any:
    """The content of a JSON file; ValueError as of `read_document`."""
    return _read(path, what, cure, _json)


def read_toml(path: Path, what: str, cure: str) -> dict[str, Any]:
    """The content of a TOML file; ValueError as of `read_document`."""
    return _read(path, what, cure, tomllib.loads)


def _read(path: Path, what: str, cure: str, parse: Callable[[str], Any]) -> Any:
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a file")  # opening a pipe would wait for ever
        text = path.read_bytes().decode()
        if not text.strip():
            raise ValueError("it is empty")
        content = parse(text)
        _check(content, 0)
    except RecursionError:
        why = "it is nested too deep"
    except UnicodeDecodeError as error:
        why = f"it is not UTF-8 text (byte {error.start})"
    except OSError as error:
        why = error.strerror or str(error)
    except ValueError as error:
        why = str(error)
    else:
        return content
    raise ValueError(f"cannot read {what} {path}: {why}; {cure}")


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"it has the key {twice[:40]!r} twice in one place")
    return found


def _surely_sealed(text: str) -> dict[str, Any]:
    data, seal = _opened(text)
    if seal is None:
        raise ValueError(f"it has no {SEAL}")
    return data


def _opened(text: str) -> tuple[dict[str, Any], str | None]:
    """A document without its seal, and the seal if it has one; ValueError if that does not fit."""
    data = _json(text)
    if not isinstance(data, dict):
        raise ValueError("it is not an object")
    seal = data.pop(SEAL, None)
    if seal is not None and seal not in _seals(text, data, str(seal)):
        raise ValueError(f"it was altered after it was written (its {SEAL} says so)")
    return data, seal


def _seals(text: str, data: dict[str, Any], seal: str) -> Iterator[str]:
    """The seal that fits; and that of an earlier version's manifests, which covered the value and not the text."""
    yield text_hash(text.replace(seal, "") if seal else text)
    if data.keys() == {"value"}:
        yield text_hash(json.dumps(data["value"], sort_keys=True))


def is_sealed(text: str) -> bool:
    """Whether a text is a document exactly as `ablate.files.sealed` made it: then it has the form that was given."""
    found = OWN_SEAL.findall(text)
    return len(found) == 1 and text_hash(text.replace(found[0], "")) == found[0]


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check(value: Any, depth: int) -> None:
    """ValueError for what JSON and TOML can spell and no later step can use."""
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict | list):
        if isinstance(value, dict):
            "".join(value).encode()
        items = value.values() if isinstance(value, dict) else value
        kinds = set(map(type, items))
        # Most of a record is such texts and numbers; one by one they take several times as long.
        if depth < MAX_DEPTH and kinds == {str}:
            "".join(items).encode()
        elif depth == MAX_DEPTH or not kinds <= {int, float} or not all(map(_is_usable, items)):
            for item in items:
                _check(item, depth + 1)
    elif isinstance(value, str):
        value.encode()
    elif isinstance(value, int | float) and not _is_usable(value):
        raise ValueError("it holds a number that is not finite, or too large")


def _is_usable(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:
        return False
