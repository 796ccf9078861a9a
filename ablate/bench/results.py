"""The document of a benchmark: what it holds, how it is written and gone on with, and what in it is a fault."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ablate.bench.render import render
from ablate.bench.timing import Ceilings
from ablate.documents import read_json
from ablate.files import replace_file
from ablate.runs import environment
from ablate.spec.machine import Machine

NO_TIME = "no time was left"


def empty(group: str, machine: Machine, limits: Ceilings, smoke: bool) -> dict[str, Any]:
    """A document with what is known before anything is measured."""
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return {
        "group": group,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"kind": machine.kind, "name": machine.name, "slug": machine.slug, "smoke": smoke},
        "environment": environment.describe(),
        "cuda": torch.version.cuda,
        "cudnn": cudnn,
        "smoke": smoke,
        "ceilings": limits.summary(),
        "operations": [],
        "steps": [],
        "tuned": [],
        "skipped": [],
        "lost": [],
        "faults": [],
        "seconds": 0.0,
    }


def go_on(document: dict[str, Any], out: Path | None) -> None:
    """Take over what a document of this group on this machine has. Nothing where there is none."""
    path = (out or Path()) / f"{document['group']}.json"
    if out is None or not path.exists():
        return
    earlier = read_json(path, "the benchmark", "move it away, or measure without --resume")
    same = ("group", "machine", "smoke")
    if not isinstance(earlier, dict) or any(earlier.get(key) != document[key] for key in same):
        raise ValueError(f"{path} is of another machine or of a smoke test; move it away, or give another --out")
    document |= {key: earlier.get(key, document[key]) for key in ("operations", "steps", "tuned", "lost", "seconds")}
    document["steps"] = [row for row in document["steps"] if row.get("reason") != NO_TIME]


def faults(document: dict[str, Any]) -> list[str]:
    """What must not be overlooked: kernels of ours that fail or are wrong, steps that fail, a device that is lost."""
    found = [
        f"{operation['name']}, {row['backend']}: {row['status']}; {row.get('reason', '')}"
        for operation in document["operations"]
        for row in operation["backends"]
        if row.get("ours") and row["status"] in ("failed", "refused")
    ]
    found += [f"{row['name']}: {row['reason']}" for row in document["steps"] if row["status"] == "failed"]
    if document["group"] == "step" and not any(r["status"] in ("measured", "checked") for r in document["steps"]):
        found.append("no training step was measured")
    lost = [f"the device was lost in {where}, to {name or 'one of those timed'}" for where, name in document["lost"]]
    return found + lost


def summary(operation: dict[str, Any]) -> str:
    """One line of an operation: every implementation with its milliseconds, or what became of it."""
    parts = []
    for row in operation["backends"]:
        became = f"{row['seconds']['median'] * 1e3:.3g} ms" if "seconds" in row else row["status"]
        parts.append(f"{row['backend']} {became}")
    return f"{operation['name']} {' '.join(f'{k}{v}' for k, v in operation['shape'].items())}: {', '.join(parts)}"


def save(document: dict[str, Any], out: Path | None, seconds: float) -> None:
    """Bring a document's faults up to date; with `out` write it, <group>.json and <group>.md, whole or not at all."""
    document["seconds"], document["faults"] = round(seconds, 1), faults(document)
    if out is not None:
        _write(document, out)


def _write(document: dict[str, Any], out: Path) -> None:
    texts = {"json": json.dumps(document, indent=1) + "\n", "md": render(document)}
    for kind, text in texts.items():
        replace_file(out / f"{document['group']}.{kind}", text, "the benchmark", durable=False)
