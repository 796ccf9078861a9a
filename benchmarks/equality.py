"""Equality table: every pipeline schedule on gloo ranks against one process, in float64; prints it and writes JSON.

python benchmarks/equality.py --ranks pipeline=4 --out equality.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from ablate.components.registry import component
from ablate.components.variants import Variant, on_ranks
from ablate.parallel.equality import Case, compare_all, trace
from ablate.parallel.launch import launch
from ablate.presets import preset
from ablate.spec.ranks import Ranks, read_ranks

VARIANTS = {
    "full": {},
    "-fp8": {"fp8": "bf16"},
    "-mtp": {"mtp": "next-token"},
    "mtp=parallel-heads": {"mtp": "parallel-heads"},
    "aux-free=none": {"aux-free": "none"},
    "-aux-free": {"aux-free": "sequence-aux"},
    "-moe": {"moe": "dense", "aux-free": "sequence-aux"},
    "none": {name: component(name).default_alternative for name in preset("nano").recipe},
}


def cases(ranks: Ranks) -> list[Case]:
    """All schedules that these ranks can have, each with every variant."""
    small, found = on_ranks(preset("nano"), ranks), []
    names = ["dualpipe", *(a.name for a in component("dualpipe").alternatives)] if ranks.pipeline > 1 else ["1f1b"]
    for name in names:
        level = {} if ranks.pipeline == 1 else {"dualpipe": "on" if name == "dualpipe" else name}
        n_micro_batches = ranks.pipeline * 2 if name == "interleaved" else ranks.pipeline * 2 + 2
        for variant, levels in VARIANTS.items():
            spec = (Variant.full(small) | {"distill": "raw"} | levels | level).resolve(small)
            found.append(
                Case(
                    schedule=name,
                    variant=variant,
                    model=spec.model,
                    text=spec.data.text,
                    pipeline=spec.trainer.pipeline,
                    ranks=ranks,
                    n_micro_batches=n_micro_batches,
                    length=16,
                )
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", default="pipeline=2")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--trace", type=Path, help="write a step of the first case for chrome://tracing, and stop")
    arguments = parser.parse_args()
    ranks, begun = read_ranks(arguments.ranks), time.monotonic()
    if arguments.trace:
        arguments.trace.write_text(json.dumps(launch(trace, ranks.world, cases(ranks)[0])[0]) + "\n", encoding="utf-8")
        return
    found = launch(compare_all, ranks.world, cases(ranks))[0]
    form = "{:12} {:20} {:6} {:7} {:7} {:>10} {:>7} {}"
    print(form.format("schedule", "variant", "equal", "losses", "counts", "gradients", "error", "live chunks"))
    for e in found:
        words = ["yes" if each else "NO" for each in (e.holds, e.losses_exact, e.counts_exact)]
        exact, live = f"{e.n_gradients_exact}/{e.n_gradients}", ",".join(map(str, e.peak_live_chunks))
        print(form.format(e.schedule, e.variant, *words, exact, f"{e.gradient_error:.0e}", live))
    print(f"{sum(e.holds for e in found)} of {len(found)} equal, {time.monotonic() - begun:.0f} s with the start")
    if arguments.out:
        arguments.out.write_text(json.dumps([e.facts() for e in found], indent=1) + "\n", encoding="utf-8")
    if not all(e.holds for e in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
