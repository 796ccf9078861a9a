"""The teacher if none is named, which also wrote the ready-made text: the run that trains it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from ablate.components.variants import Variant
from ablate.presets import preset_file
from ablate.spec.machine import this_machine
from ablate.spec.run import Preset, RunSpec


def default_preset() -> Preset:
    """Its sizes; the vocabulary is that of the corpus to prepare."""
    return preset_file(Path(str(resources.files("ablate.teachers"))) / "default.toml")


def default_run(corpus_hash: str, *, seed: int = 0) -> RunSpec:
    """The run whose weights are the teacher: every component off, on the corpus of that hash."""
    preset = default_preset()
    spec = Variant.none().resolve(preset).for_machine(this_machine())
    return spec.run(corpus_hash=corpus_hash, seed=seed, n_steps=preset.n_tokens // spec.trainer.tokens_per_step)
