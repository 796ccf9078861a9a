"""The teacher if none is named, which also wrote the ready-made text: the run that trains it."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path

from ablate.components.variants import Variant
from ablate.presets import preset_file
from ablate.spec.machine import this_machine
from ablate.spec.run import Preset, RunSpec


def default_preset() -> Preset:
    """Its sizes; `default_run` replaces the vocabulary by that of the corpus."""
    return preset_file(Path(str(resources.files("ablate.teachers"))) / "default.toml")


def default_run(corpus_hash: str, *, vocab_size: int, seed: int = 0) -> RunSpec:
    """The run whose weights are the teacher: every component off, on the corpus of that hash and vocabulary."""
    preset = default_preset()
    preset = replace(preset, model=replace(preset.model, vocab_size=vocab_size))
    spec = Variant.none().resolve(preset).for_machine(this_machine())
    return spec.run(corpus_hash=corpus_hash, seed=seed, n_steps=preset.n_tokens // spec.trainer.tokens_per_step)
