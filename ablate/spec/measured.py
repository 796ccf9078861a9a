"""What was measured on this very device: configurations of kernels and the fastest backend of a slot. No torch.

`dsv3-ablate bench kernels --tune` writes a file for each device: `kernels` (kernel -> choices, read by
`ablate.kernels.table`) and `backends` (slot -> backend, which `auto` takes first).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ablate.documents import read_json as read_document
from ablate.spec.machine import Machine

FOLDER = Path(__file__).parents[1] / "kernels" / "measured"
WHAT = "the table of measured choices"
CURE = "delete it if it is of this machine (dsv3-ablate bench kernels --tune makes another), else install it anew"


def measured_file(machine: Machine) -> Path:
    """The file of a device, whether it exists or not."""
    return FOLDER / f"{machine.slug}.json"


@cache
def read_json(path: Path) -> Mapping[str, Any]:
    """A file's content, read once; empty where there is no file. `read_json.cache_clear()` after one was written."""
    return read_document(path, WHAT, CURE) if path.exists() else {}


def section(path: Path, *names: str) -> Mapping[str, Any]:
    """The object under these names of a file, empty where there is none; ValueError where something else is there."""
    found: Any = read_json(path)
    for name in ("", *names):
        found = found.get(name, {}) if name else found
        if not isinstance(found, Mapping):
            raise ValueError(f"cannot use {WHAT} {path}: {'.'.join(names)} is not an object; {CURE}")
    return found


def measured_backends(machine: Machine) -> Mapping[str, str]:
    """Slot -> the fastest backend, where it was measured on this very device; empty elsewhere."""
    return section(measured_file(machine), "backends")
