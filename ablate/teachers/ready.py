"""The teacher of the ready-made text: the run that trains it, so that it can be trained again."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from ablate.components.variants import Variant
from ablate.presets import preset_file
from ablate.spec.machine import this_machine
from ablate.spec.run import Preset, RunSpec


def teacher_preset() -> Preset:
    """Its sizes; the vocabulary is that of the corpus to prepare."""
    return preset_file(Path(str(resources.files("ablate.teachers"))) / "teacher.toml")


def teacher_run(corpus_hash: str, *, seed: int = 0) -> RunSpec:
    """The run whose weights are the teacher: every component off, on the corpus of that hash."""
    preset = teacher_preset()
    spec = Variant.none().resolve(preset).for_machine(this_machine())
    return RunSpec(
        model=spec.model,
        text=spec.data.text,
        trainer=spec.trainer,
        corpus_hash=corpus_hash,
        seed=seed,
        n_steps=preset.n_tokens // spec.trainer.tokens_per_step,
    )
