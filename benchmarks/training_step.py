"""One training step of DeepSeek-V3's architecture: ours against transformers' DeepseekV3 of the same sizes.

    python benchmarks/training_step.py --preset cpu --rounds 15

Same sizes, batch, dtype, threads, optimizer and clipping; no multi-token prediction and no FP8, which the other does
not have. Both are timed in turn in one process; printed are medians of the rounds, tokens per second, and the ratio.
Needs the extra `transformers`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ablate.bench.step import LEFT_OUT, in_turn, ours, theirs, windows
from ablate.components.variants import Variant
from ablate.presets import preset
from ablate.spec.machine import this_machine

WARM_UP = 2


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    base, machine = preset(arguments.preset), this_machine()
    device = torch.device(machine.kind)
    spec = Variant.full(base).without(LEFT_OUT).resolve(base).for_machine(machine)
    length = arguments.sequence_length or base.trainer.sequence_length
    window = windows(spec.model.vocab_size, arguments.batch, length, device)
    steps = {"ours": ours(spec, window, device), "transformers": theirs(spec, window, device)}
    in_turn(steps, WARM_UP, device)
    samples = in_turn(steps, arguments.rounds, device)
    _print({name: sample.seconds for name, sample in samples.items()}, arguments.batch * length, arguments)


def _print(seconds: Mapping[str, Sequence[float]], n_tokens: int, arguments: Any) -> None:
    ratio = statistics.median(t / o for t, o in zip(seconds["transformers"], seconds["ours"], strict=True))
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:13} {median * 1e3:8.1f} ms a step   {n_tokens / median:8.0f} tokens/s")
    print(f"ours is {ratio:.2f} times as fast (median of {len(seconds['ours'])} pairs; {n_tokens} tokens a step)")
    if arguments.json:
        print(json.dumps({"seconds": seconds, "tokens": n_tokens, "ratio": ratio, "torch": torch.__version__}))


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--sequence-length", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
