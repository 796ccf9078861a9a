"""Where a run ran: versions, commit, machine. An allow-list; nothing of the process environment is stored."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "triton", "lightning", "numpy", "tokenizers", "safetensors", "dsv3-ablate")


@cache
def describe() -> dict[str, Any]:
    """Package versions, commit with a hash of uncommitted changes, processor, and the accelerator if there is one."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "commit": _commit(),
        "processor": _processor(),
        "n_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": device,
        "system": f"{platform.system()} {platform.machine()}",
    }


def program() -> dict[str, Any]:
    """What a checkpoint may only be continued by: the same code and packages on the same kind of device."""
    facts = describe()
    return {key: facts[key] for key in ("packages", "commit", "device")}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> dict[str, Any]:
    """The commit of the program's own checkout; empty where it was installed without one."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return {}
    try:
        head = _git(folder, "rev-parse", "HEAD").strip()
        changes = _git(folder, "diff", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return {}
    digest = hashlib.sha256(changes.encode()).hexdigest()[:16] if changes else ""
    return {"hash": head, "dirty": bool(changes), "diff_hash": digest}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, errors="replace").stdout


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor()
    return platform.processor()
