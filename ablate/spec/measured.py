"""What was measured on this very device: configurations of kernels and the fastest backend of a slot. No torch.

`dsv3-ablate bench kernels --tune` writes a file for each device: `kernels` (kernel -> choices, read by
`ablate.kernels.table`) and `backends` (slot -> backend, which `auto` takes first).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ablate.spec.machine import Machine

FOLDER = Path(__file__).parents[1] / "kernels" / "measured"


def measured_file(machine: Machine) -> Path:
    """The file of a device, whether it exists or not."""
    return FOLDER / f"{machine.slug}.json"


@cache
def read_json(path: Path) -> Mapping[str, Any]:
    """A file's content, read once; empty where there is no file. `read_json.cache_clear()` after one was written."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def measured_backends(machine: Machine) -> Mapping[str, str]:
    """Slot -> the fastest backend, where it was measured on this very device; empty elsewhere."""
    return read_json(measured_file(machine)).get("backends", {})
