"""What a training step dispatches and moves, before and after each habit that was mended; no device is used.

    python benchmarks/step_traffic.py [--preset h200-d1024] [--micro-batches 4] [--json]

Operators as a processor dispatches them, on tensors without numbers, so at the preset's own sizes: on a GPU some are
fewer (a norm is one there). Bytes are those of every operator's operands and results, each once, as if nothing stayed
in a cache; `conversions` are those of the operators that only change a dtype.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from ablate.bench.step import LEFT_OUT, on
from ablate.bench.traffic import Traffic, counted
from ablate.components.variants import Variant
from ablate.presets import preset_with
from ablate.spec.run import Spec

CONVERSION = "_to_copy"


def steps(name: str) -> Iterator[tuple[str, Spec, bool]]:
    """A row's name, the variant, and whether its weights are converted once a step."""
    for residual in ("float32", "bfloat16"):
        base = preset_with(name, {"model.residual_dtype": residual, "trainer.dtype": "bfloat16"})
        full = Variant.full(base)
        bf16 = on(full.without(LEFT_OUT[1:]).resolve(base), "library")
        if residual == "float32":
            yield "libraries, weights converted in every micro-batch", bf16, False
            yield "libraries", bf16, True
            yield "our kernels", on(bf16, "triton"), True
            yield "our kernels, FP8", on(on(full.resolve(base), "library"), "triton"), True
        else:
            yield "libraries, residual stream in bfloat16", bf16, True
            yield "our kernels, residual stream in bfloat16", on(bf16, "triton"), True


def row(name: str, traffic: Traffic) -> dict[str, Any]:
    return {
        "step": name,
        "operators": traffic.n_operators,
        "conversions": traffic.operators[CONVERSION],
        "bytes": traffic.n_bytes,
        "conversion_bytes": traffic.bytes[CONVERSION],
        "waits": sorted(traffic.waits),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="h200-d1024")
    parser.add_argument("--micro-batches", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not arguments.json:
        print(f"{arguments.preset}, {arguments.micro_batches} micro-batches an optimizer step\n")
        print("| step | operators | conversions | GB moved | of these by conversions | waits for the device |")
        print("|---|---|---|---|---|---|", flush=True)
    rows = []
    for name, spec, once_a_step in steps(arguments.preset):
        found = row(name, counted(spec, n_micro_batches=arguments.micro_batches, once_a_step=once_a_step))
        rows.append(found)
        if not arguments.json:
            moved, converted = found["bytes"] / 1e9, found["conversion_bytes"] / 1e9
            print(
                f"| {name} | {found['operators']:,} | {found['conversions']:,} | {moved:,.1f} | {converted:,.1f} "
                f"| {', '.join(found['waits']) or 'none'} |",
                flush=True,
            )
    if arguments.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
