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
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from ablate.export.config import hf_config
from ablate.model import build
from ablate.presets import preset
from ablate.registry import full_variant, resolve, without
from ablate.spec import Spec

LEFT_OUT = ("mtp", "fp8", "distill")


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    base = preset(arguments.preset)
    spec = resolve(base, without(full_variant(base), LEFT_OUT, {}))
    length = arguments.sequence_length or base.trainer.sequence_length
    window = torch.randint(
        spec.model.vocab_size, (arguments.batch, length + 1), generator=torch.Generator().manual_seed(0)
    )
    steps = {"ours": _ours(spec, window), "transformers": _theirs(spec, window)}
    seconds = _in_turn(steps, arguments.rounds)
    _print(seconds, window, arguments)


def _ours(spec: Spec, window: torch.Tensor) -> Callable[[], None]:
    model = build(spec.model, seed=0)

    def loss() -> torch.Tensor:
        prediction = model.predict(window[:, :-1])
        logits = model.head(prediction.hidden_BTD)
        cross_entropy = F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        return cross_entropy + spec.model.balance.loss(prediction.routing, {}) if spec.model.balance else cross_entropy

    return _step(model, loss)


def _theirs(spec: Spec, window: torch.Tensor) -> Callable[[], None]:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = DeepseekV3Config(**hf_config(spec.model, window.shape[1] - 1), use_cache=False)
    model = DeepseekV3ForCausalLM(config).train()

    def loss() -> torch.Tensor:
        logits = model(window[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())

    return _step(model, loss)


def _step(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def _in_turn(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_ >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _print(seconds: dict[str, list[float]], window: torch.Tensor, arguments: Any) -> None:
    n_tokens = window[:, 1:].numel()
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
