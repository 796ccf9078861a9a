"""A teacher for tests: random weights in the form in which a finished run leaves its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ablate.components.variants import Variant
from ablate.model import weights
from ablate.model.transformer import build
from ablate.presets import preset
from ablate.spec.machine import this_machine
from ablate.spec.model import ModelSpec


def write_weights(folder: Path, *, corpus_hash: str = "", model: ModelSpec | None = None, seed: int = 0) -> Path:
    """The folder `weights` of a run of preset nano with everything off, or of another model."""
    spec = Variant.none().resolve(preset("nano")).for_machine(this_machine())
    run = replace(spec, model=model or spec.model).run(corpus_hash=corpus_hash, seed=seed, n_steps=1)
    weights.write_weights(folder, build(run.model, seed).state_dict(), run)
    return folder
