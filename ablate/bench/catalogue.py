"""Every module that has kernels, and what its kernels become when they are compiled for Hopper."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from ablate.kernels.ahead_of_time import REGISTERS, SHARED_BYTES, Compiled, compiling
from ablate.kernels.table import Table

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

COUNTS = {"wgmma": "hgmma", "qgmma": "qgmma", "tma": "tma"}


def features() -> Mapping[str, tuple[str, ...]]:
    """Kernel -> what its machine code must show: wgmma, qgmma, tma."""
    return {kernel: wanted for module in _modules() for kernel, wanted in module.KERNELS.items()}


def compile_all(only: str = "") -> list[Compiled]:
    """Every kernel at every configuration that ships for sm_90, compiled here; `only`: of modules whose name has it.

    Raises ValueError where Triton interprets. No GPU is used.
    """
    with compiling() as found:
        for module in _modules(only):
            for _ in module.specimens():
                pass
    return found


def unused() -> list[str]:
    """Shipped configurations that no specimen of this process has chosen: they would stay uncompiled."""
    return [
        f"{table.path.name}: {kernel} {choice}"
        for table in _tables()
        for kernel in table.kernels("sm_90")
        for choice in table.shipped(kernel, "sm_90")
        if choice not in table.used.get(kernel, [])
    ]


def faults(compiled: Compiled) -> list[str]:
    """What makes a compiled kernel unfit to ship."""
    found = []
    if compiled.target != "sm_90a":
        found.append(f"it was compiled for {compiled.target}")
    if compiled.spill_bytes:
        found.append(f"it spills {compiled.spill_bytes} bytes")
    if compiled.registers > REGISTERS:
        found.append(f"it uses {compiled.registers} registers")
    if compiled.shared_bytes > SHARED_BYTES:
        found.append(f"it uses {compiled.shared_bytes} bytes of shared memory")
    for wanted in features()[compiled.kernel]:
        if not getattr(compiled, COUNTS[wanted]):
            found.append(f"its machine code has no {wanted}")
    return found


def _modules(only: str = "") -> Iterator[Any]:
    return (importlib.import_module(name) for name in MODULES if only in name)


def _tables() -> list[Table]:
    """The tables of all modules; one that several share, once."""
    found: list[Table] = []
    for module in _modules():
        found += [t for t in vars(module).values() if isinstance(t, Table) and t not in found]
    return found
