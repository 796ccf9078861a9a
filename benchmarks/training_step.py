"""One training step of DeepSeek-V3's architecture: ours against transformers' DeepseekV3 of the same sizes.

    python benchmarks/training_step.py --preset cpu --rounds 15

Same sizes, batch, dtype, threads, optimizer and clipping; no multi-token prediction and no FP8, which the other does
not have. Both are timed in turn in one process; printed are medians of the rounds, tokens per second, and the ratio.
And what bounds a step of these sizes, the time of the matrix products and attention cores of our step alone, replayed.
Needs the extra `transformers`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ablate.bench.step import LEFT_OUT, in_turn, ours, theirs, windows
from ablate.components.variants import Variant
from ablate.presets import preset
from ablate.spec.machine import this_machine

WARM_UP = 2
PRODUCTS = ("mm", "bmm", "addmm", "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention_for_cpu_backward")  # fmt: skip


class Products(TorchDispatchMode):
    """Keeps the calls of matrix products and attention cores, with what they were given, to be made again alone."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ in PRODUCTS:
            self.calls.append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))

    def again(self) -> None:
        with torch.no_grad():
            for function, args, kwargs in self.calls:
                function(*args, **kwargs)


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
    with Products() as products:
        steps["ours"]()
    steps["products"] = products.again
    samples = in_turn(steps, arguments.rounds, device)
    _print({name: sample.seconds for name, sample in samples.items()}, arguments.batch * length, arguments)


def _print(seconds: Mapping[str, Sequence[float]], n_tokens: int, arguments: Any) -> None:
    ratio = statistics.median(t / o for t, o in zip(seconds["transformers"], seconds["ours"], strict=True))
    products = statistics.median(seconds["products"])
    for name, values in ((name, seconds[name]) for name in ("ours", "transformers")):
        median = statistics.median(values)
        print(f"{name:13} {median * 1e3:8.1f} ms a step   {n_tokens / median:8.0f} tokens/s")
    print(f"ours is {ratio:.2f} times as fast (median of {len(seconds['ours'])} pairs; {n_tokens} tokens a step)")
    print(
        f"matrix products and attention cores of our step alone: {products * 1e3:.1f} ms; no step made of them is more "
        f"than {statistics.median(seconds['transformers']) / products:.2f} times as fast as transformers'"
    )
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
