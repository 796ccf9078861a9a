"""Equality table: pipeline schedules and expert transports on gloo ranks against one process, in float64.

    python benchmarks/equality.py [--ranks pipeline=2 --ranks pipeline=2,data=2,expert=2,node=1] [--out FILE.json]
        [--schedule gpipe]... [--transport on]...

Every schedule and every transport that each layout of ranks can have (or those that are named), with every variant:
prints a line a case and writes JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from ablate.components.component import ON
from ablate.components.registry import component
from ablate.components.variants import Variant, on_ranks
from ablate.parallel.equality import Case, Equality, compare_all
from ablate.parallel.launch import launch
from ablate.presets import preset
from ablate.spec.ranks import Ranks, read_ranks

LAYOUTS = ("pipeline=2", "data=2,expert=2,node=1", "pipeline=2,data=2,expert=2,node=1", "data=4,expert=4,node=2")
RECOMPUTED = "full, recomputed"
VARIANTS = {
    "full": {},
    "-fp8": {"fp8": "bf16"},
    "-mtp": {"mtp": "next-token"},
    "mtp=parallel-heads": {"mtp": "parallel-heads"},
    "aux-free=none": {"aux-free": "none"},
    "-aux-free": {"aux-free": "sequence-aux"},
    "-moe": {"moe": "dense", "aux-free": "sequence-aux"},
    "none": {name: component(name).default_alternative for name in preset("nano").recipe},
    RECOMPUTED: {},
}
FORM = "{:12} {:13} {:20} {:6} {:7} {:7} {:>10} {:>7} {}"


def cases(ranks: Ranks, asked: Mapping[str, Sequence[str] | None] = MappingProxyType({})) -> list[Case]:
    """All schedules and transports that these ranks can have, or those that are asked for, each with every variant."""
    small, found = on_ranks(preset("nano"), ranks), []
    levels = {
        name: asked.get(name) or (ON, *(a.name for a in component(name).alternatives))
        if ranks.on_several(axis)
        else (None,)
        for name, axis in (("dualpipe", "pipeline"), ("alltoall", "expert"))
    }
    for schedule, transport in itertools.product(*levels.values()):
        name = {None: "1f1b", ON: "dualpipe"}.get(schedule, schedule)
        for variant, others in VARIANTS.items():
            routes = "moe" not in others
            if not routes and transport not in (None, ON):
                continue  # without experts nothing is sent
            chosen = {"dualpipe": schedule, "alltoall": transport if routes else None}
            own = {name: level for name, level in chosen.items() if level}
            if transport and not routes:
                own["alltoall"] = component("alltoall").default_alternative
            spec = (Variant.full(small) | {"distill": "raw"} | others | own).resolve(small)
            found.append(
                Case(
                    schedule=name or "",
                    variant=variant,
                    model=spec.model,
                    text=spec.data.text,
                    pipeline=spec.trainer.pipeline,
                    transport=spec.trainer.transport,
                    recompute="full" if variant == RECOMPUTED else "none",
                    ranks=ranks,
                    n_micro_batches=_micro_batches(ranks, name),
                    length=16,
                )
            )
    return found


def _micro_batches(ranks: Ranks, schedule: str | None) -> int:
    if ranks.pipeline == 1:
        return 2
    return ranks.pipeline * 2 if schedule == "interleaved" else ranks.pipeline * 2 + 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", action="append", help=f"default: {' and '.join(LAYOUTS)}")
    parser.add_argument("--schedule", action="append", help="as levels of dualpipe; default: all")
    parser.add_argument("--transport", action="append", help="as levels of alltoall; default: all")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    layouts = [read_ranks(text) for text in arguments.ranks or LAYOUTS]
    found: list[Equality] = []
    print(FORM.format("schedule", "transport", "variant", "equal", "losses", "counts", "gradients", "error", "live"))
    for ranks in layouts:
        found += _table(ranks, {"dualpipe": arguments.schedule, "alltoall": arguments.transport})
    if arguments.out:
        arguments.out.write_text(json.dumps([e.facts() for e in found], indent=1) + "\n", encoding="utf-8")
    if not all(e.holds for e in found):
        raise SystemExit(1)


def _table(ranks: Ranks, asked: Mapping[str, Sequence[str] | None]) -> list[Equality]:
    """The cases of one layout, those of a schedule in one start of its ranks, each told when they are done."""
    begun, found = time.monotonic(), []
    print(f"{ranks}:")
    for _, together in itertools.groupby(cases(ranks, asked), key=lambda case: case.schedule):
        of_schedule: list[Equality] = launch(compare_all, ranks.world, list(together))[0]
        for e in of_schedule:
            losses = "bits" if e.losses_exact else f"{e.loss_error:.0e}"
            words = ["yes" if e.holds else "NO", losses, "bits" if e.counts_exact else "DIFFER"]
            exact, live = f"{e.n_gradients_exact}/{e.n_gradients}", ",".join(map(str, e.peak_live_chunks))
            schedule = e.schedule if ranks.pipeline > 1 else "-"
            row = FORM.format(schedule, e.transport, e.variant, *words, exact, f"{e.gradient_error:.0e}", live)
            print(row, flush=True)
        found += of_schedule
    print(f"{sum(e.holds for e in found)} of {len(found)} equal, {time.monotonic() - begun:.0f} s")
    return found


if __name__ == "__main__":
    main()
