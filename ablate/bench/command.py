"""What `dsv3-ablate bench` does: run a group of operations or the step ladder, and write down everything that is known.

Operations need torch and Triton alone; the steps need pydantic and Lightning too, and transformers for its row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ablate.bench import attention, fp8, loss, moe, norms, quantise, results
from ablate.bench.operation import Operation, first_line, is_lost, run_operation
from ablate.bench.timing import Ceilings, ceilings
from ablate.kernels import launch  # noqa: F401  # repairs the interpreter before any kernel runs
from ablate.spec.machine import Machine, this_machine
from ablate.spec.measured import measured_file

# The most telling first: what a time limit cuts off are the last.
GROUPS: dict[str, Callable[[], list[Operation]]] = {
    "attention": attention.operations,
    "moe": moe.operations,
    "fp8": lambda: [*fp8.operations(), *quantise.operations()],
    "loss": loss.operations,
    "norm": norms.operations,
}
NAMES = ("kernels", *GROUPS, "step")
TUNING = "a candidate of its kernels"  # to which the device was lost
BUDGET_S = 0.2  # of measuring, for each implementation of an operation
SMOKE_BUDGET_S = 0.004
LADDER = ("h200-d1024", "h200-d768", "h200-d512")  # the first that fits the GPU by libraries
SMOKE_PRESET = "nano"


def run_bench(
    group: str,
    *,
    preset: str = "",
    tune: bool = False,
    smoke: bool = False,
    out: Path | None = None,
    limit_s: float | None = None,
    resume: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Everything measured, in plain data; with `out` also in <group>.json and <group>.md, after every operation.

    group: one of NAMES; `kernels` is all but `step`. `tune`: also time the candidates of every kernel that ships, and
    write what is fastest for this device. `smoke`: every path, figures without meaning. `limit_s`: what is not begun
    by then is listed and left out. `resume`: what `out` has of this group is kept and not measured again, and an
    implementation to which the device was lost is not tried again. ValueError for a group or preset that there is not,
    for tuning without CUDA, and for going on from another machine's document.
    """
    machine = this_machine()
    if group not in NAMES:
        raise ValueError(f"there is no group {group!r} of benchmarks; there are: {', '.join(NAMES)}")
    if tune and not (machine.runs_triton and (smoke or machine.kind == "cuda")):
        raise ValueError(f"--tune measures kernels on a GPU of compute capability 9.0; this machine is: {machine}")
    if tune and group == "step":
        raise ValueError("--tune measures kernels: use it with the group kernels, or with one of its parts")
    began = time.monotonic()

    def left_s() -> float:
        return float("inf") if limit_s is None else limit_s - (time.monotonic() - began)

    limits = ceilings(torch.device(machine.kind), smoke=smoke)
    document = results.empty(group, machine, limits, smoke)
    if resume:
        results.go_on(document, out)
    earlier_s = document["seconds"]
    parts = _steps(document, machine, limits, preset, smoke, left_s) if group == "step" else None
    for text in parts or _operations(document, machine, limits, group, tune, smoke, left_s):
        say(text)
        if tune:
            _write_tables(document, machine, out, smoke)
        results.save(document, out, earlier_s + time.monotonic() - began)
    if tune:
        _write_tables(document, machine, out, smoke, _fills())
    results.save(document, out, earlier_s + time.monotonic() - began)
    return document


def _write_tables(document: dict[str, Any], machine: Machine, out: Path | None, smoke: bool, fills: Any = None) -> None:
    """What has been tuned so far, where the tables read it and in `out`; `fills`: at the end, for slots' backends."""
    from ablate.bench.tune import write

    places = [] if smoke else [measured_file(machine)]
    places += [out / "measured.json"] if out is not None else []
    for place in places:
        document["written"] = write(document, machine, fills or {}, place)


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
        row = _known(document, operation)
        if row is None and left_s() <= 0:
            document["skipped"].append(f"{operation.title}: {results.NO_TIME}")
            continue
        if row is None:
            spent = [name for title, name in document["lost"] if title == operation.title]
            row = run_operation(operation, machine, limits, SMOKE_BUDGET_S if smoke else BUDGET_S, spent)
            document["operations"] = [r for r in document["operations"] if not _is_of(r, operation)] + [row]
            if "lost" in row:
                document["lost"].append([operation.title, row["lost"]])
            yield results.summary(row)
            if "lost" in row:
                return
        if tune and left_s() > 0 and all(entry["operation"] != operation.title for entry in document["tuned"]):
            yield from _tuned(document, operation, machine)
            if [operation.title, TUNING] in document["lost"][-1:]:
                return


def _is_of(row: dict[str, Any], operation: Operation) -> bool:
    return (row["group"], row["name"]) == (operation.group, operation.name) and row["shape"] in (
        dict(operation.shape),
        dict(operation.small),
    )


def _known(document: dict[str, Any], operation: Operation) -> dict[str, Any] | None:
    """What an earlier process measured of an operation; None where one of its implementations lost the device."""
    row = next((r for r in document["operations"] if _is_of(r, operation)), None)
    return None if row is None or row.get("lost") else row


def _tuned(document: dict[str, Any], operation: Operation, machine: Machine) -> Iterator[str]:
    from ablate.bench.tune import tune_operation

    if [operation.title, TUNING] in document["lost"]:
        return
    ours = {implementation.name for implementation in operation.implementations if implementation.needs == "triton"}
    row = next(row for row in document["operations"] if _is_of(row, operation))
    right = {each["backend"] for each in row["backends"] if each["status"] in ("measured", "checked")}
    if not ours & right:
        return
    try:
        found = tune_operation(
            replace(operation, implementations=[w for w in operation.implementations if w.name in right]),
            machine,
            SMOKE_BUDGET_S if document["smoke"] else BUDGET_S,
        )
    except Exception as fault:
        document["skipped"].append(f"{operation.title}: its kernels were not tuned; {first_line(fault)}")
        if is_lost(torch.device(machine.kind)):
            document["lost"].append([operation.title, TUNING])
            yield "  the device was lost to a candidate"
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


def _default_preset(machine: Machine) -> str:
    """The largest of the ladder whose step by libraries fits this GPU; on a processor `cpu`."""
    from ablate.components.variants import Variant
    from ablate.presets import preset
    from ablate.presets.training_memory import RESERVE, by_backends

    if machine.kind != "cuda":
        return "cpu"
    available = torch.cuda.get_device_properties(0).total_memory
    for name in LADDER:
        full = preset(name)
        spec = Variant.full(full).resolve(full)
        if by_backends(spec.model, spec.trainer)["library"]["peak"] <= (1 - RESERVE) * available:
            return name
    return LADDER[-1]


def _steps(
    document: dict[str, Any], machine: Machine, limits: Ceilings, name: str, smoke: bool, left_s: Callable[[], float]
) -> Iterator[str]:
    """A line for each training step as it is measured."""
    try:
        from ablate.bench.step import ladder
        from ablate.presets import preset

        base = preset(name or (SMOKE_PRESET if smoke else _default_preset(machine)))
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
        done=[row["name"] for row in document["steps"]],
    )
    for row in rows:
        document["steps"].append(row)
        rate = f"{row['tokens_per_s']:,.0f} tokens/s" if "seconds" in row else f"{row['status']}; {row['reason']}"
        yield f"{row['name']}: {rate}"
        if row["status"] == "failed" and is_lost(torch.device(machine.kind)):
            document["lost"].append([row["name"], ""])
            return
