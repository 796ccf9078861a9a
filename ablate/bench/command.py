"""What `dsv3-ablate bench` does: run a group of operations or the step ladder, and write down everything that is known.

Operations need torch and Triton alone; the steps need pydantic and Lightning too, and transformers for its row.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ablate.bench import attention, fp8, loss, moe, norms, quantise
from ablate.bench.operation import Operation, first_line, run_operation
from ablate.bench.render import render
from ablate.bench.timing import Ceilings, ceilings
from ablate.kernels import launch  # noqa: F401  # repairs the interpreter before any kernel runs
from ablate.runs import environment
from ablate.spec.machine import Machine, this_machine

# The most telling first: what a time limit cuts off are the last.
GROUPS: dict[str, Callable[[], list[Operation]]] = {
    "attention": attention.operations,
    "moe": moe.operations,
    "fp8": lambda: [*fp8.operations(), *quantise.operations()],
    "loss": loss.operations,
    "norm": norms.operations,
}
NAMES = ("kernels", *GROUPS, "step")
BUDGET_S = 0.2  # of measuring, for each implementation of an operation
SMOKE_BUDGET_S = 0.004
PRESETS = {"cuda": "h200-d1024", "cpu": "cpu"}
SMOKE_PRESET = "nano"


def run_bench(
    group: str,
    *,
    preset: str = "",
    tune: bool = False,
    smoke: bool = False,
    out: Path | None = None,
    limit_s: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Everything measured, in plain data; with `out` also in <group>.json and <group>.md, after every operation.

    group: one of NAMES; `kernels` is all but `step`. `tune`: also time the candidates of every kernel that ships, and
    write what is fastest for this device. `smoke`: every path, figures without meaning. `limit_s`: what is not begun
    by then is listed and left out. ValueError for a group or preset that there is not, and for tuning without CUDA.
    """
    machine = this_machine()
    if group not in NAMES:
        raise ValueError(f"there is no group {group!r} of benchmarks; there are: {', '.join(NAMES)}")
    if tune and (machine.kind != "cuda" or not machine.runs_triton):
        raise ValueError(f"--tune measures kernels on a GPU of compute capability 9.0; this machine is: {machine}")
    if tune and group == "step":
        raise ValueError("--tune measures kernels: use it with the group kernels, or with one of its parts")
    began = time.monotonic()

    def left_s() -> float:
        return float("inf") if limit_s is None else limit_s - (time.monotonic() - began)

    limits = ceilings(torch.device(machine.kind), smoke=smoke)
    document = _empty(group, machine, limits, smoke)
    parts = _steps(document, machine, limits, preset, smoke, left_s) if group == "step" else None
    for text in parts or _operations(document, machine, limits, group, tune, smoke, left_s):
        say(text)
        document["seconds"] = round(time.monotonic() - began, 1)
        if out is not None:
            save(document, out)
    if tune:
        from ablate.bench.tune import write

        document["written"] = write(document, machine, _fills())
        if out is not None:
            save(document, out)
    return document


def _empty(group: str, machine: Machine, limits: Ceilings, smoke: bool) -> dict[str, Any]:
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
        "seconds": 0.0,
    }


def _operations(
    document: dict[str, Any],
    machine: Machine,
    limits: Ceilings,
    group: str,
    tune: bool,
    smoke: bool,
    left_s: Callable[[], float],
) -> Iterator[str]:
    """A line for each operation as it is done."""
    seen: set[Any] = set()
    for operation in [o for name, make in GROUPS.items() if group in (name, "kernels") for o in make()]:
        # A processor knows only the small shapes, which are the same for several operations.
        key = (operation.group, operation.name, tuple(operation.small.items()))
        if machine.kind != "cuda" and key in seen:
            continue
        seen.add(key)
        if left_s() <= 0:
            document["skipped"].append(f"{operation.title}: no time was left")
            continue
        document["operations"].append(run_operation(operation, machine, limits, SMOKE_BUDGET_S if smoke else BUDGET_S))
        yield summary(document["operations"][-1])
        if tune and left_s() > 0:
            yield from _tuned(document, operation, machine)


def _tuned(document: dict[str, Any], operation: Operation, machine: Machine) -> Iterator[str]:
    from ablate.bench.tune import tune_operation

    ours = {implementation.name for implementation in operation.implementations if implementation.needs == "triton"}
    right = {row["backend"] for row in document["operations"][-1]["backends"] if row["status"] == "measured"}
    if not ours & right:
        return
    try:
        found = tune_operation(
            replace(operation, implementations=[w for w in operation.implementations if w.name in right]),
            machine,
            BUDGET_S,
        )
    except Exception as fault:
        document["skipped"].append(f"{operation.title}: its kernels were not tuned; {first_line(fault)}")
        return
    document["tuned"] += found
    yield f"  tuned: {', '.join(entry['kernel'] for entry in found) or 'nothing'}"


def _fills() -> dict[tuple[str, str, str], str]:
    operations = [operation for make in GROUPS.values() for operation in make()]
    return {
        (operation.group, operation.name, implementation.name): implementation.fills
        for operation in operations
        for implementation in operation.implementations
        if implementation.fills
    }


def _steps(
    document: dict[str, Any], machine: Machine, limits: Ceilings, name: str, smoke: bool, left_s: Callable[[], float]
) -> Iterator[str]:
    """A line for each training step as it is measured."""
    try:
        from ablate.bench.step import ladder
        from ablate.presets import preset

        base = preset(name or (SMOKE_PRESET if smoke else PRESETS[machine.kind]))
    except ImportError as fault:
        raise ValueError(f"training steps need {fault.name}; install {fault.name}") from None
    trainer = base.trainer
    document["model"] = {"preset": base.name, "sequence_length": trainer.sequence_length, "dtype": trainer.dtype}
    rows = ladder(
        base,
        machine,
        limits.flops_per_s,
        batch=trainer.micro_batch_size,
        length=trainer.sequence_length,
        rounds=2 if smoke else 10,
        left_s=left_s,
    )
    for row in rows:
        document["steps"].append(row)
        rate = f"{row['tokens_per_s']:,.0f} tokens/s" if "seconds" in row else f"{row['status']}; {row['reason']}"
        yield f"{row['name']}: {rate}"


def summary(operation: dict[str, Any]) -> str:
    """One line of an operation: every implementation with its milliseconds, or what became of it."""
    parts = []
    for row in operation["backends"]:
        became = f"{row['seconds']['median'] * 1e3:.3g} ms" if "seconds" in row else row["status"]
        parts.append(f"{row['backend']} {became}")
    return f"{operation['name']} {' '.join(f'{k}{v}' for k, v in operation['shape'].items())}: {', '.join(parts)}"


def save(document: dict[str, Any], out: Path) -> None:
    """Write <group>.json and <group>.md into `out`, which is made if it is not there."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{document['group']}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (out / f"{document['group']}.md").write_text(render(document), encoding="utf-8")
