"""The fastest configuration of every kernel at the shapes of the benchmark, and the fastest backend of every slot.

What was measured goes to kernels/measured/<device>.json, which the tables read before all others. A choice holds for
sizes near the measured ones; for others the shipped choices stay.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ablate.bench.operation import (
    Implementation,
    Operation,
    Prepared,
    as_tensors,
    first_line,
    is_lost,
    largest_error,
    made,
    release,
)
from ablate.bench.timing import measure
from ablate.files import replace_file
from ablate.kernels import table
from ablate.kernels.table import Configuration, Table, forced
from ablate.spec.machine import Machine
from ablate.spec.measured import read_json

WORTH_CHANGING = 0.99  # of the shipped choice's seconds: less is noise
NEAR = (3 / 4, 3 / 2)  # of a measured size


Asked = dict[str, tuple[Table, Mapping[str, int], Configuration]]  # kernel -> where, for what sizes, and the choice


@contextmanager
def asking() -> Iterator[Asked]:
    """Inside, what every kernel was chosen for is noted, whichever thread launches it."""
    asked: Asked = {}

    def note(own: Table, kernel: str, sizes: Mapping[str, int], chosen: Configuration) -> None:
        asked[kernel] = own, sizes, chosen

    table.watchers.append(note)
    try:
        yield asked
    finally:
        table.watchers.remove(note)


def tune_operation(operation: Operation, machine: Machine, budget_s: float) -> list[dict[str, Any]]:
    """The candidates of every kernel that our own implementation launches, each with its seconds or its fault."""
    implementations = [
        implementation for implementation in operation.implementations if implementation.needs == "triton"
    ]
    device = torch.device(machine.kind)
    shape = operation.shape if machine.kind == "cuda" else operation.small
    found = []
    for implementation in implementations:
        inputs = [made(operation, shape, seed, device) for seed in (0, 1)]
        with asking() as asked:
            run = implementation.prepare(*inputs[0])
            expected = tuple(t.detach().clone() for t in implementation.read(run()))
        for kernel, (own, sizes, shipped) in asked.items():
            others = own.candidates(kernel, machine.architecture)
            candidates = [shipped, *(c for c in others if c.options != shipped.options)]
            if len(candidates) > 1:
                rows = _try(operation, implementation, inputs, kernel, candidates, expected, budget_s)
                found.append({"kernel": kernel, "operation": operation.title, "sizes": dict(sizes), "candidates": rows})
        del inputs, expected
        release()
    return found


def _try(
    operation: Operation,
    implementation: Implementation,
    inputs: Sequence[Any],
    kernel: str,
    candidates: Sequence[Configuration],
    expected: Sequence[torch.Tensor],
    budget_s: float,
) -> list[dict[str, Any]]:
    """Seconds of the whole implementation with each candidate; the first is what the table chooses."""
    rows: list[dict[str, Any]] = []
    ready: dict[str, list[Prepared]] = {}
    for candidate in candidates:
        row: dict[str, Any] = {"configuration": encode(candidate)}
        rows.append(row)
        try:
            with forced(kernel, candidate):
                prepared = [implementation.prepare(*each) for each in inputs]
                error = largest_error(implementation.read(prepared[0]()), as_tensors(tuple(expected)))
        except Exception as fault:  # too much shared memory, a shape that it does not fit, a fault of the compiler
            row["fault"] = first_line(fault)
            if is_lost(inputs[0][0].device):
                raise
            continue
        if error > 2 * implementation.allowed(operation):
            row["fault"] = f"its result is {error:.1e} from the shipped configuration's"
            continue
        ready[str(len(rows) - 1)] = [_with(kernel, candidate, run) for run in prepared]
    for index, sample in measure(ready, inputs[0][0].device, budget_s).items():
        rows[int(index)]["seconds"] = sample.median
    return rows


def _with(kernel: str, candidate: Configuration, run: Prepared) -> Callable[[], Any]:
    def launched() -> Any:
        with forced(kernel, candidate):
            return run()

    return launched


def encode(c: Configuration) -> dict[str, Any]:
    """A configuration as the tables' files have it."""
    return {"blocks": dict(c.blocks), "num_warps": c.num_warps, "num_stages": c.num_stages}


def best(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The fastest that is right; the shipped one (the first) unless another is faster by more than noise."""
    timed = [row for row in rows if "seconds" in row]
    if not timed:
        return None
    fastest = min(timed, key=lambda row: row["seconds"])
    shipped = rows[0]
    keep = "seconds" in shipped and fastest["seconds"] > WORTH_CHANGING * shipped["seconds"]
    return dict((shipped if keep else fastest)["configuration"])


def choices(tuned: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Kernel -> its choices by size, as the tables read them. Of operations with the same sizes the first counts."""
    found: dict[str, dict[str, Any]] = {}
    for entry in tuned:
        configuration = best(entry["candidates"])
        if configuration is None:
            continue
        when = {name: [math.ceil(NEAR[0] * n), math.floor(NEAR[1] * n)] for name, n in entry["sizes"].items()}
        known = found.setdefault(entry["kernel"], {"choices": []})["choices"]
        if all(choice["when"] != when for choice in known):
            known.append({"when": when, **configuration})
    return found


def backends(operations: Sequence[Mapping[str, Any]], fills: Mapping[tuple[str, str, str], str]) -> dict[str, str]:
    """Slot -> the fastest backend over the slot's operations together, of those that were measured in all of them.

    `fills`: (group, operation, implementation) -> backend. Two kinds of node of one slot (linear/fp8, linear/standard)
    must agree.
    """
    winners: dict[str, set[str]] = {}
    for kind in {operation["slot"] for operation in operations if operation.get("slot")}:
        totals: dict[str, list[float]] = {}
        own = [operation for operation in operations if operation.get("slot") == kind]
        for operation in own:
            for row in operation["backends"]:
                backend = fills.get((operation["group"], operation["name"], row["backend"]))
                if backend and row["status"] == "measured":
                    totals.setdefault(backend, []).append(row["seconds"]["median"])
        complete = {name: sum(seconds) for name, seconds in totals.items() if len(seconds) == len(own)}
        if len(complete) > 1:
            winners.setdefault(kind.partition("/")[0], set()).add(min(complete, key=lambda name: complete[name]))
    return {slot: next(iter(names)) for slot, names in sorted(winners.items()) if len(names) == 1}


def write(document: Mapping[str, Any], machine: Machine, fills: Mapping[tuple[str, str, str], str], path: Path) -> str:
    """The measured choices of a device into `path`; kernels and slots that were not measured this time keep theirs.

    fills: as of `backends`; empty as long as operations are still to come.
    """
    read_json.cache_clear()
    before = read_json(path)
    content = {
        "device": machine.name,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": document["environment"]["packages"],
        "kernels": before.get("kernels", {}) | choices(document["tuned"]),
        "backends": before.get("backends", {}) | backends(document["operations"], fills),
    }
    replace_file(path, json.dumps(content, indent=1) + "\n", "the table of measured choices")
    table.forget()
    return str(path)
