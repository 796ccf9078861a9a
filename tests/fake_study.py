"""Study folders with records made in code: fixed numbers, no training, no torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablate.files import to_json
from ablate.runs.record import Failure, RunRecord
from ablate.spec.decoding import data_id

FULL = {"mla": "on", "moe": "on", "aux-free": "on", "mtp": "on"}
N_TOKENS, FLOPS_PER_TOKEN, N_POINTS = 300_000, 4_800_000, 20

# Loss of each seed with mtp and without it; the differences do not sum to a round number.
WITH_LOSSES = (3.2110, 3.1875, 3.2304, 3.1990, 3.2171)
WITHOUT_LOSSES = (3.2533, 3.2249, 3.2760, 3.2361, 3.2620)

Change = Callable[[RunRecord], RunRecord]


def spec(variant: str, seed: int) -> dict[str, Any]:
    """What reports read of a run's specification; `model` stands for all that makes variants differ."""
    trainer = {"sequence_length": 256, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 3e-3,
               "n_held_out_windows": 64, "n_curve_windows": 16, "decay_share": 0.2, "dtype": "float32"}  # fmt: skip
    return {"seed": seed, "n_steps": 300, "trainer": trainer, "model": variant}


def run_name(variant: str, seed: int) -> str:
    return data_id(spec(variant, seed))


def record(variant: str, seed: int, loss: float, levels: Mapping[str, str] | None = None, **fields: Any) -> RunRecord:
    """A finished run that ends at `loss`."""
    levels = levels or FULL
    mtp = levels.get("mtp") == "on"
    n_tokens = N_TOKENS if mtp else 375_000
    metrics = {
        "step": 300.0, "n_tokens": float(n_tokens), "learning_rate": 0.0, "train_loss": loss - 0.05,
        "nats_per_token": loss, "bits_per_byte": loss / 2.2, "step_s": 0.11 + 0.001 * seed + 0.02 * mtp,
        "tokens_per_s": 1000 / (0.11 + 0.001 * seed + 0.02 * mtp), "peak_memory_bytes": 3.2e8 + 1e6 * seed,
        "seconds": 42.0 + seed, "evaluation_s": 1.5, "max_violation": 0.4 + 0.01 * seed, "load_entropy": 0.98,
        "dead_experts": 0.0,
    }  # fmt: skip
    if mtp:
        metrics["draft_acceptance"] = 0.31 + 0.004 * seed
    curve = tuple(
        {"step": 15.0 * k, "n_tokens": n_tokens * k / N_POINTS, "learning_rate": 3e-3, "train_loss": loss + 3 / k,
         "nats_per_token": loss + 4.2 * (1 / k - 1 / N_POINTS) + (1 - k / N_POINTS) * ((seed * 2 + mtp) % 5) / 50}
        for k in range(1, N_POINTS + 1)
    )  # fmt: skip
    whole = RunRecord(
        run_id=run_name(variant, seed),
        status="finished",
        spec=spec(variant, seed),
        variant=dict(levels),
        metrics=metrics,
        curve=curve,
        order_hash=f"order of seed {seed}",
        initial_parameters={"embedding.weight": f"512x64:{seed}"},
        backends={"attention": "reference", "linear": "reference", "device": "cpu"},
        evidence={"loss": "measured", "speed": "measured", "memory": "measured"},
        environment={
            "packages": {"torch": "2.13.0", "numpy": "2.3.0", "dsv3-ablate": "0.1.0"},
            "python": "3.11.2",
            "commit": {"hash": "0123456789abcdef0123456789abcdef01234567", "dirty": False, "diff_hash": ""},
            "processor": "A processor",
            "device": "cpu",
            "n_cores": 2,
            "n_threads": 1,
            "system": "Linux x86_64",
        },
        attempts=({"name": "0000-aaaaaaaa"},),
    )
    return dataclasses.replace(whole, **fields)


def variant(name: str, levels: Mapping[str, str], seeds: Sequence[int], **changes: Any) -> dict[str, Any]:
    """A variant as the plan's file has it."""
    mtp = levels.get("mtp") == "on"
    cost = {
        "total_parameters": 812_345, "activated_parameters": 301_234, "trained_parameters": 812_345 + 120_000 * mtp,
        "training_flops_per_token": FLOPS_PER_TOKEN + 1_200_000 * mtp, "forward_flops_per_token": 1_600_000,
        "kv_cache_bytes_per_token": 640, "kv_cache_elements_per_token": 320, "weight_bytes": 1_600_000,
        "optimizer_bytes": 9_600_000, "sequence_length": 256,
    }  # fmt: skip
    n_tokens = N_TOKENS if mtp else 375_000
    plain = {"name": name, "levels": dict(levels), "cost": cost, "learning_rate": 3e-3, "n_steps": 300,
             "n_tokens": n_tokens, "flops": n_tokens * cost["training_flops_per_token"],
             "seeds": list(seeds), "run_ids": [run_name(name, seed) for seed in seeds], "step_s": 0.1}  # fmt: skip
    return plain | changes


def plan(variants: Sequence[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    """The plan's file of full against -mtp over five seeds."""
    seeds = changes.get("seeds", list(range(5)))
    default = [variant("full", FULL, seeds), variant("-mtp", FULL | {"mtp": "next-token"}, seeds)]
    return {
        "question": "Is multi-token prediction worth its compute at this scale?",
        "preset": "cpu", "preset_title": "two cores, one million parameters", "design": "one", "match": "flops",
        "budget": 1.8e12, "seeds": seeds, "margin_nats": 0.005, "confidence": 0.95,
        "corpus": {"source": "stdlib", "hash": "c0ffee" * 8, "vocab_size": 512, "train_tokens": 9_000_000,
                   "held_out_texts": {}},
        "variants": list(variants) if variants else default,
    } | changes  # fmt: skip


def records(
    with_losses: Sequence[float] = WITH_LOSSES, without_losses: Sequence[float] = WITHOUT_LOSSES
) -> list[RunRecord]:
    """Every run of `plan()`, finished."""
    off = FULL | {"mtp": "next-token"}
    return [record("full", seed, loss) for seed, loss in enumerate(with_losses)] + [
        record("-mtp", seed, loss, off) for seed, loss in enumerate(without_losses)
    ]


def changed(found: Sequence[RunRecord], variant_name: str, seed: int, **fields: Any) -> list[RunRecord]:
    """The records with fields of one run replaced."""
    name = run_name(variant_name, seed)
    return [dataclasses.replace(r, **fields) if r.run_id == name else r for r in found]


def without(found: Sequence[RunRecord], variant_name: str, seed: int) -> list[RunRecord]:
    return [r for r in found if r.run_id != run_name(variant_name, seed)]


def write_study(
    folder: Path, plan_: Mapping[str, Any], found: Sequence[RunRecord], failures: Sequence[Failure] = ()
) -> Path:
    """The folder as a study leaves it."""
    (folder / "records").mkdir(parents=True)
    (folder / "failures").mkdir()
    (folder / "plan.json").write_text(json.dumps(plan_), encoding="utf-8")
    (folder / "study.toml").write_text('question = "?"\npreset = "cpu"\ndisable = ["mtp"]\n', encoding="utf-8")
    for r in found:
        (folder / "records" / f"{r.run_id}.json").write_text(to_json(dataclasses.asdict(r)), encoding="utf-8")
    for r in failures:
        (folder / "failures" / f"{r.run_id}-0000.json").write_text(to_json(dataclasses.asdict(r)), encoding="utf-8")
    return folder


def failure(variant_name: str, seed: int, reason: str) -> Failure:
    return Failure(
        run_id=run_name(variant_name, seed), variant=FULL, seed=seed, reason=reason, traceback="", time_s=0.0
    )
