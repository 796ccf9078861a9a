"""Every kernel compiles for Hopper at every configuration that ships: no spills, the right instructions, in limits."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ablate.bench.catalogue import MODULES
from ablate.kernels.ahead_of_time import SHARED_BYTES, repeats

ROOT = Path(__file__).parents[2]


@cache
def compiled(only: str = "") -> dict[str, Any]:
    """What the command prints, in a process in which Triton does not interpret."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, str(ROOT / "benchmarks" / "kernel_resources.py"), "--json", "--only", only]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


# A module with matrix instructions of 8 bits, and one with those of 16 and the copy engine. All of them: `-m slow`.
@pytest.mark.parametrize(
    ("only", "features"),
    [
        ("fp8.kernel.product", {"qgmma", "tma"}),
        ("kernels.grouped_weight", {"hgmma", "tma"}),
        pytest.param("", {"hgmma", "qgmma", "tma"}, marks=pytest.mark.slow),
    ],
)
def test_kernels_are_fit(only: str, features: set[str]) -> None:
    """No faults, every kernel of every module among them, the instructions that they claim, and the chip's limits."""
    found = compiled(only)
    assert not found["faults"]
    names = {row["kernel"] for row in found["kernels"]}
    for module in (name for name in MODULES if only in name):
        wanted = set(importlib.import_module(module).KERNELS)
        assert wanted, module
        assert wanted <= names, module
    assert features <= {feature for feature in ("hgmma", "qgmma", "tma") if any(r[feature] for r in found["kernels"])}
    for row in found["kernels"]:
        assert row["target"] == "sm_90a"
        assert row["stack_bytes"] == row["local"] == 0, row
        assert row["registers"] <= 255, row
        assert row["repeats"] <= 1, row
        assert row["shared_bytes"] <= SHARED_BYTES, row


def test_what_makes_a_kernel_unfit() -> None:
    from dataclasses import replace

    from ablate.bench.catalogue import faults
    from ablate.kernels.ahead_of_time import Compiled

    row = next(r for r in compiled("fp8.kernel.product")["kernels"] if r["kernel"] == "fp8_product_kernel")
    good, features = Compiled(**row), {"fp8_product_kernel": ("qgmma", "tma")}
    assert not faults(good, features)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"stack_bytes": 8}, "spills: 8 bytes of stack"),
        ({"local": 3}, "3 accesses to local memory"),
        ({"qgmma": 0}, "no qgmma"),
        ({"tma": 0}, "no tma"),
        ({"repeats": 2}, "compute a product 2 times"),
        ({"shared_bytes": SHARED_BYTES + 1}, "shared memory"),
        ({"registers": 256}, "256 registers"),
        ({"target": "sm_80"}, "compiled for sm_80"),
    ]
    for change, words in changes:
        assert any(words in fault for fault in faults(replace(good, **change), features))


@pytest.mark.parametrize(
    ("warps", "instruction", "tile", "expected"),
    [
        ("8, 1", "16, 64, 16", "128x64", 1),
        ("8, 1", "16, 64, 16", "64x64", 2),  # two warpgroups at one tile of 64 rows
        ("4, 2", "16, 64, 16", "64x128", 1),
        ("4, 2", "16, 64, 16", "64x64", 2),
        ("4, 1", "16, 256, 32", "128x128", 2),
    ],
)
def test_products_that_are_computed_twice_are_seen(warps: str, instruction: str, tile: str, expected: int) -> None:
    ttgir = f"""
    #mma = #ttg.nvidia_mma<{{versionMajor = 3, x, warpsPerCTA = [{warps}], instrShape = [{instruction}]}}>
    %a = ttng.warp_group_dot %x, %y, %z : !ttg.memdesc<9x9xbf16> * !ttg.memdesc<9x9xbf16> -> tensor<{tile}xf32, #mma>
    """
    assert repeats(ttgir) == expected
    assert repeats("") == 0


SPILLING = """
from itertools import islice
from ablate.bench.catalogue import faults
from ablate.components.mla.kernel import attention
from ablate.kernels.ahead_of_time import compiling
from ablate.kernels.table import Configuration, forced

too_wide = Configuration(blocks={"BLOCK_M": 64, "BLOCK_N": 128}, num_warps=8, num_stages=2)
with forced("mla_attention_backward_key", too_wide), compiling() as rows:
    list(islice(attention.example_launches(), 1))
print([fault for row in rows for fault in faults(row, attention.KERNELS)])
"""


def test_a_kernel_that_spills_is_caught() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", SPILLING]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "it spills: " in done.stdout
