"""What every kernel is compiled to for Hopper (sm_90a): registers, spills, shared memory, matrix and copy instructions.

    python benchmarks/kernel_resources.py [--only mla] [--candidates] [--json]

Needs no GPU. Exit code 1 if a kernel spills, misses an instruction that it should use, computes a product twice, or
passes a limit; or if a configuration of a table was compiled by nobody. --candidates: what `bench kernels --tune` tries
besides, in place of what ships.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata

from ablate.bench.catalogue import compile_all
from ablate.kernels.ahead_of_time import Compiled


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="Part of a module's name.")
    parser.add_argument("--candidates", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="Processes.")
    arguments = parser.parse_args()
    rows, wrong = compile_all(arguments.only, arguments.jobs, candidates=arguments.candidates)
    triton = metadata.version("triton")
    if arguments.json:
        print(json.dumps({"triton": triton, "kernels": [asdict(row) for row in rows], "faults": wrong}, indent=1))
    else:
        print(f"Triton {triton}, sm_90a\n\n{table(rows)}")
    for fault in wrong:
        print(f"fault: {fault}", file=sys.stderr)
    return 1 if wrong else 0


def table(rows: Sequence[Compiled]) -> str:
    """A Markdown table."""
    lines = [
        "| kernel | configuration | registers | spills | shared KiB | HGMMA | QGMMA | TMA |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in sorted(rows, key=lambda r: r.kernel):
        lines.append(
            f"| {r.kernel} | {r.configuration} | {r.registers} | {r.stack_bytes} | {r.shared_bytes / 1024:.1f} "
            f"| {r.hgmma} | {r.qgmma} | {r.tma} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
