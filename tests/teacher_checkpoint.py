"""A teacher for tests: random weights in the form in which a finished run leaves its own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from safetensors.torch import save

from ablate.components.variants import Variant
from ablate.model.transformer import build
from ablate.presets import preset
from ablate.spec.decoding import encode
from ablate.spec.machine import this_machine
from ablate.spec.model import ModelSpec
from ablate.spec.run import RunSpec


def write_weights(folder: Path, *, corpus_hash: str = "", model: ModelSpec | None = None, seed: int = 0) -> Path:
    """The folder `weights` of a run of preset nano with everything off, or of another model."""
    spec = Variant.none().resolve(preset("nano")).for_machine(this_machine())
    run = RunSpec(
        model=model or spec.model,
        text=spec.data.text,
        trainer=spec.trainer,
        corpus_hash=corpus_hash,
        seed=seed,
        n_steps=1,
    )
    state = build(run.model, seed).state_dict()
    names = {name: {"!": "tensor", "name": f"/state_dict/{name}"} for name in state}
    parts = {
        "tensors.safetensors": save({f"/state_dict/{name}": tensor for name, tensor in state.items()}),
        "state.json": json.dumps({"state_dict": names, "spec": encode(run)}).encode(),
    }
    folder.mkdir(parents=True)
    for name, content in parts.items():
        (folder / name).write_bytes(content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
    (folder / "manifest.json").write_text(json.dumps(hashes), encoding="utf-8")
    return folder
