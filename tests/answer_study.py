"""Lattices of two components with planted savings in tokens, and an answer made from them without a simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fake_study as fake
import numpy as np
import pytest

from ablate.evidence.changes import content
from ablate.evidence.changes.content import AnswerContent
from ablate.evidence.changes.simulated import Factor, Simulated, Speeds, Step

OFF = {"mla": "gqa", "mtp": "next-token", "distill": "raw"}
SPEEDS = {"moe": 0.5, "fp8": 1.3, "dualpipe": 1.2, "mla": 0.98, "aux-free": 1.0}  # what the stand-in simulates


def lattice(
    folder: Path, saved: Mapping[str, float], *, size: float = 1.0, noise: float = 0.01,
    seeds: Sequence[int] = range(4), controls: Sequence[str] = (),
) -> Path:  # fmt: skip
    """Every variant of the named components in every seed; a component multiplies the tokens that a run is worth.

    size: times the tokens, FLOPs and parameters of the fake study. noise: sd of ln(tokens) from run to run.
    """
    generator = np.random.default_rng(7)
    variants, records = [], []
    names = [*saved, *controls]
    for on in itertools.product((True, False), repeat=len(names)):
        levels = fake.FULL | {n: "on" if is_on else OFF.get(n, "off") for n, is_on in zip(names, on, strict=True)}
        name = "+".join(n for n, is_on in zip(names, on, strict=True) if is_on) or "none"
        factor = math.prod(saved.get(n, 1.0) for n, is_on in zip(names, on, strict=True) if is_on)
        name = f"{name} x{size:g}"
        planned = fake.variant(name, levels, seeds)
        planned["n_tokens"], planned["flops"] = round(size * planned["n_tokens"]), round(size**2 * planned["flops"])
        planned["cost"]["total_parameters"] = round(size * planned["cost"]["total_parameters"])
        variants.append(planned)
        for seed in seeds:
            worth = factor * math.exp(generator.normal(0, noise))
            points = [(share * planned["n_tokens"], _loss(worth * share * planned["n_tokens"] / size, seed))
                      for share in (0.25, 0.5, 1.0)]  # fmt: skip
            branches = tuple({"step": 1.0, "n_tokens": t, "nats_per_token": x} for t, x in points[:-1])
            found = fake.record(name, seed, points[-1][1], levels, branches=branches)
            found.metrics["n_tokens"] = float(planned["n_tokens"])
            records.append(found)
    return fake.write_study(folder, fake.plan(variants, seeds=list(seeds), design="lattice"), records)


def _loss(tokens: float, seed: int) -> float:
    x = math.log(tokens / 300_000)
    return 3.2 + 0.01 * seed - 0.3 * x + 0.05 * x * x


def stand_in(preset: str, cluster: str) -> Speeds:
    """What a simulation would say, in no time."""
    changes = {
        name: Simulated(
            factor=Factor(estimate=x, low=0.97 * x, high=1.04 * x), added_first=Factor(estimate=x, low=x, high=x),
            left_out=Factor(estimate=x, low=x, high=x), from_flops_per_token=1.0, resolved=abs(math.log(x)) > 0.03,
            memory_with_bytes=6e10, memory_without_bytes=7e10, fits_without=True,
        )
        for name, x in SPEEDS.items()
    }  # fmt: skip
    return Speeds(
        cluster=cluster, cluster_title="many GPUs", layout_source="a paper", changes=changes,
        together=Factor(estimate=0.8, low=0.7, high=0.9), n_variants=80, n_beyond_memory=3, reason="",
        step=Step(seconds=20.0, low=18.0, high=22.0, published_s=19.9, source="a paper, table 4"),
    )  # fmt: skip


def answer(
    monkeypatch: pytest.MonkeyPatch, folders: Sequence[Path], preset: str = "v3-671b", **fields: Any
) -> AnswerContent:
    """The content of these studies with the stand-in for the simulation."""
    monkeypatch.setattr(content, "speeds", stand_in)
    return content.build(preset, "h800-2048", folders, **fields)
