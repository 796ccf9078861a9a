"""Transports between expert ranks on this machine: equality with one process, bytes and copies, seconds of a step.

    python benchmarks/transports.py [--ranks data=4,expert=4,node=2] [--out FILE.json]

Prints a line a case and writes JSON. On one machine the seconds say what the program itself costs, not what a network
would: every copy goes through memory.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from ablate.components.registry import component
from ablate.files import to_json
from ablate.parallel.launch import launch
from ablate.parallel.transport.equality import Case, check
from ablate.runs.environment import describe
from ablate.spec.ranks import read_ranks

FULL = {"mla": "on", "moe": "on", "aux-free": "on", "mtp": "on", "fp8": "on"}
VARIANTS = {
    "full": {},
    "-fp8": {"fp8": "bf16"},
    "-mtp": {"mtp": "next-token"},
    "-aux-free": {"aux-free": "sequence-aux"},
    "-fp8 -mla": {"fp8": "bf16", "mla": "gqa"},
    "-fp8 moe=unlimited": {"fp8": "bf16", "moe": "unlimited"},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", default="data=4,expert=4,node=2")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    ranks = read_ranks(given.ranks)
    transports = ("on", *(a.name for a in component("alltoall").alternatives))
    cases = []
    for transport in transports:
        named = [
            (name, Case(levels=FULL | off | {"alltoall": transport}, ranks=ranks)) for name, off in VARIANTS.items()
        ]
        uneven = Case(
            levels=named[1][1].levels, ranks=ranks, n_routed_experts=6, idle=1, starved=1
        )  # six experts do not divide by four; one gets no token, one rank has none
        cases += [(transport, name, case) for name, case in (*named, ("-fp8, uneven", uneven))]
    found = launch(check, ranks.world, [case for *_, case in cases])[0]
    print(
        f"{'transport':14}{'variant':22}{'loss':>9}{'gradient':>10}{'norm':>9}{'counts':>8}{'copies':>8}{'bytes':>9}{'s':>8}"
    )
    for (transport, name, _), e in zip(cases, found, strict=True):
        print(
            f"{transport:14}{name:22}{e.loss_error:9.0e}{e.gradient_error:10.0e}{e.norm_error:9.0e}"
            f"{'equal' if e.counts_equal else 'DIFFER':>8}{sum(e.copies.values()):8}{sum(e.n_bytes.values()):9}"
            f"{e.step_s:8.3f}{'' if e.holds else '  DOES NOT HOLD'}"
        )
    if given.out:
        rows = [
            {"transport": transport, "variant": name, "holds": e.holds} | asdict(e)
            for (transport, name, _), e in zip(cases, found, strict=True)
        ]
        given.out.write_text(to_json({"ranks": asdict(ranks), "cases": rows, "environment": describe()}))
    return 0 if all(e.holds for e in found) else 1


if __name__ == "__main__":
    sys.exit(main())
