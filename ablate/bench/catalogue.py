"""Every module that has kernels, and what its kernels become when they are compiled for Hopper."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from ablate.kernels import launch
from ablate.kernels.ahead_of_time import REGISTERS, SHARED_BYTES, Compiled, compiling
from ablate.kernels.table import Table, forced

MODULES = (
    "ablate.kernels.rms_norm",
    "ablate.kernels.cross_entropy",
    "ablate.kernels.combine",
    "ablate.kernels.grouped_product",
    "ablate.kernels.grouped_weight_gradient",
    "ablate.components.mla.kernel.attention",
    "ablate.components.mla.kernel.rotate",
    "ablate.components.mla.kernel.assembly",
    "ablate.components.mla.kernel.decode",
    "ablate.components.moe.kernel",
    "ablate.components.aux_free.kernel",
    "ablate.components.fp8.kernel.quantise",
    "ablate.components.fp8.kernel.swiglu",
    "ablate.components.fp8.kernel.norm",
    "ablate.components.fp8.kernel.product",
    "ablate.components.fp8.kernel.grouped",
)

ARCHITECTURE = "sm_90"
COUNTS = {"wgmma": "hgmma", "qgmma": "qgmma", "tma": "tma", "copies": "copies"}


def compile_all(only: str = "", jobs: int = 1, *, candidates: bool = False) -> tuple[list[Compiled], list[str]]:
    """Every kernel at every configuration that ships for sm_90, compiled here, and what makes any of it unfit.

    only: of modules whose name has it. jobs: processes. candidates: what tuning tries besides, in place of what ships.
    No GPU is used. ValueError where Triton interprets.
    """
    names = [name for name in MODULES if only in name]
    if launch.INTERPRETED:
        raise ValueError("kernels cannot be compiled while TRITON_INTERPRET=1 is set; unset it")
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(_compile_candidates if candidates else _compile, names))
    return [row for rows, _ in results for row in rows], [fault for _, found in results for fault in found]


def _compile(name: str) -> tuple[list[Compiled], list[str]]:
    module = importlib.import_module(name)
    with compiling() as rows:
        for _ in module.example_launches():
            pass
    found = [fault for row in rows for fault in _named_faults(row, module)]
    missing = set(module.KERNELS) - {row.kernel for row in rows}
    found += [f"{name}: the example_launches launch no {kernel}" for kernel in sorted(missing)]
    return rows, found + unused(module)


def _compile_candidates(name: str) -> tuple[list[Compiled], list[str]]:
    module = importlib.import_module(name)
    table: Table = module.TABLE
    found: list[Compiled] = []
    for kernel in table.kernels(ARCHITECTURE):
        shipped = [choice.options for choice in table.shipped(kernel, ARCHITECTURE)]
        for candidate in table.candidates(kernel, ARCHITECTURE):
            if candidate.options not in shipped:
                with forced(kernel, candidate), compiling(candidate.options) as rows:
                    for _ in module.example_launches():
                        pass
                found += rows
    return found, [fault for row in found for fault in _named_faults(row, module)]


def _named_faults(row: Compiled, module: Any) -> list[str]:
    return [f"{row.kernel} ({row.configuration}): {fault}" for fault in faults(row, module.KERNELS)]


def unused(module: Any) -> list[str]:
    """Configurations that the module ships and its example_launches have not chosen: they would stay uncompiled."""
    table: Table = module.TABLE
    return [
        f"{table.path.name}: {kernel} {choice} is compiled by none of the example_launches"
        for kernel in table.kernels(ARCHITECTURE)
        for choice in table.shipped(kernel, ARCHITECTURE)
        if choice not in table.used.get(kernel, [])
    ]


def faults(compiled: Compiled, features: Mapping[str, Sequence[str]]) -> list[str]:
    """What makes a compiled kernel unfit to ship; features: kernel -> what its machine code must show."""
    found = []
    if compiled.target != "sm_90a":
        found.append(f"it was compiled for {compiled.target}")
    if compiled.stack_bytes or compiled.local:
        found.append(f"it spills: {compiled.stack_bytes} bytes of stack, {compiled.local} accesses to local memory")
    if compiled.registers > REGISTERS:
        found.append(f"it uses {compiled.registers} registers")
    if compiled.shared_bytes > SHARED_BYTES:
        found.append(f"it uses {compiled.shared_bytes} bytes of shared memory")
    if compiled.repeats > 1:
        found.append(f"its warps compute a product {compiled.repeats} times: give it blocks as large as they cover")
    for wanted in features[compiled.kernel]:
        if not getattr(compiled, COUNTS[wanted]):
            found.append(f"its machine code has no {wanted}")
    return found
