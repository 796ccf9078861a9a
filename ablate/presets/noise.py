"""How far runs of a preset stray, measured once in published studies: noise.json, made by benchmarks/known_noise.py."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from ablate.documents import read_json
from ablate.spec.decoding import FORBID_UNKNOWN, decode, encode
from ablate.spec.run import Preset

FILE = Path(__file__).with_name("noise.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownNoise:
    """The noise of one study's comparison. An sd is None where the study did not give it."""

    preset: str
    components: tuple[str, ...]  # off on one side of the pairs
    match: str
    budget: float  # of a run, in the unit of `match`
    circumstances: Mapping[str, Any]  # see `circumstances`
    origin: str  # the study's report
    seeds: tuple[int, ...]  # of its pairs
    pair_sd_nats: float  # of the difference of a pair of runs with one seed
    pair_sd_log_cost: float | None  # of the logarithm of the cost to reach a loss, pair by pair
    pair_df: float
    run_sd_nats: float  # of one run from seed to seed
    run_df: float

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN


def circumstances(preset: Preset) -> dict[str, Any]:
    """What noise depends on most, beside the budget: a known noise holds where these are the same."""
    trainer = encode(preset.trainer)
    names = ("batch_size", "sequence_length", "learning_rate", "warmup_share", "decay_share", "n_held_out_windows")
    model = {"dim": preset.model.dim, "n_layers": preset.model.n_layers, "vocab_size": preset.model.vocab_size}
    return {**model, **{name: trainer[name] for name in names}, "corpus": preset.data.source}


def known_noise(preset: Preset, match: str, budget: float) -> tuple[KnownNoise, ...]:
    """What was measured under the same circumstances at the same budget of a run, to 1 %."""
    here = circumstances(preset)
    return tuple(
        noise
        for noise in _all()
        if noise.preset == preset.name
        and noise.match == match
        and abs(noise.budget / budget - 1) < 0.01
        and dict(noise.circumstances) == here
    )


def of_components(found: Collection[KnownNoise], components: Collection[str]) -> KnownNoise | None:
    """The noise of pairs that differ in exactly these components."""
    return next((noise for noise in found if set(noise.components) == set(components)), None)


@cache
def _all() -> tuple[KnownNoise, ...]:
    found = read_json(FILE, "the known noise of the presets", "install the program anew")
    return decode(tuple[KnownNoise, ...], found, FILE.name)
