"""What this machine can do: versions, devices, which arithmetic is real here and which only emulated."""

from __future__ import annotations

import importlib.util
import os
import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablate.quantities import memory
from ablate.spec.machine import c_compiler, cache_folder, has_gpu

OPTIONAL = {"pyarrow": "parquet", "datasets": "datasets", "transformers": "transformers", "openai": "endpoint",
            "gguf": "teacher"}  # fmt: skip


def examine() -> dict[str, Any]:
    """Facts by name; `warnings` are what would surprise a user."""
    import torch

    from ablate.runs.environment import describe

    facts = dict(describe())
    facts["memory_bytes"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    facts["cache"] = str(cache_folder())
    facts["free_bytes"] = shutil.disk_usage(_existing(cache_folder())).free
    facts["extras"] = {name: importlib.util.find_spec(name) is not None for name in OPTIONAL}
    facts["cuda"] = torch.cuda.is_available()
    capability = torch.cuda.get_device_capability() if facts["cuda"] else None
    facts["compute_capability"] = ".".join(map(str, capability)) if capability else None
    facts["c_compiler"] = " ".join(c_compiler())
    facts["warnings"] = _warnings(facts)
    return facts


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _warnings(facts: Mapping[str, Any]) -> list[str]:
    warnings = []
    if not facts["cuda"]:
        warnings.append("no GPU: fp8 is exact in its numbers and emulated in its speed; presets beyond cpu take days")
    if has_gpu() and not facts["cuda"]:
        warnings.append("there is an NVIDIA device, and this torch cannot use it: install the CUDA build of torch")
    if not facts["cuda"] and not facts["c_compiler"]:
        warnings.append("no C compiler (cc, gcc, clang, $CC): torch runs what `compiled` would be faster at")
    if facts["free_bytes"] < 2 * 2**30:
        warnings.append(f"{memory(facts['free_bytes'])} are free where corpora are cached")
    return warnings


def render(facts: Mapping[str, Any]) -> str:
    """The facts as lines for people."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    missing = [
        f"{name} (pip install 'dsv3-ablate[{OPTIONAL[name]}]')" for name, there in facts["extras"].items() if not there
    ]
    lines = [
        f"python     {facts['python']} on {facts['system']}",
        f"packages   {versions}",
        f"processor  {facts['processor']}, {facts['n_cores']} cores, {memory(facts['memory_bytes'])}",
        f"device     {facts['device']}",
        f"compiler   {facts['c_compiler'] or 'none'}",
        f"cache      {facts['cache']} ({memory(facts['free_bytes'])} free)",
        f"extras     missing: {', '.join(missing)}" if missing else "extras     all there",
        *(f"note       {warning}" for warning in facts["warnings"]),
    ]
    indent = " " * len("packages   ")
    return "\n".join(textwrap.fill(line, 80, subsequent_indent=indent, break_on_hyphens=False) for line in lines)
