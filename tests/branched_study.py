"""A lattice of two components whose runs leave curves that are known: what each is worth in tokens is planted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import fake_study as fake

SAVED = {"mla": 1.1, "mtp": 0.8}  # times the tokens that the same loss takes without
OFF = {"mla": "gqa", "mtp": "next-token"}


def loss(tokens: float, seed: int, saved: float) -> float:
    """All variants have one curve, a parabola in ln(tokens), and run along it `saved` times as fast."""
    x = math.log(saved * tokens / 300_000)
    return 3.2 + 0.01 * seed - 0.3 * x + 0.05 * x * x


def lattice_study(tmp_path: Path, evidence: str = "measured", saved: Mapping[str, float] = SAVED) -> Path:
    """Four variants of two components that save these factors of the tokens, in three seeds."""
    variants, records = [], []
    for on in ((), ("mla",), ("mtp",), ("mla", "mtp")):
        levels = fake.FULL | {name: "on" if name in on else OFF[name] for name in saved}
        name, factor = "+".join(on) or "none", math.prod(saved[n] for n in on)
        variants.append(fake.variant(name, levels, range(3)))
        tokens = variants[-1]["n_tokens"]
        for seed in range(3):
            points = tuple({"step": 300 * s, "n_tokens": tokens * s, "nats_per_token": loss(tokens * s, seed, factor)}
                           for s in (0.25, 0.5))  # fmt: skip
            kinds = {"loss": "measured", "speed": evidence if "mla" in on else "measured", "memory": "measured"}
            end = loss(tokens, seed, factor)
            records.append(fake.record(name, seed, end, levels, branches=points, evidence=kinds))
    plan = fake.plan(variants[::-1], seeds=[0, 1, 2], design="lattice")
    return fake.write_study(tmp_path / "lattice", plan, records)
