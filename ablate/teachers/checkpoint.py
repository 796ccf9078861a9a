"""The weights of a finished run as a teacher's: safetensors and JSON, verified, nothing in them executed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.spec.run import RunSpec

if TYPE_CHECKING:
    from ablate.model.transformer import Transformer

# As ablate.runs writes the folder `weights` of a run.
MANIFEST, TENSORS, STATE = "manifest.json", "tensors.safetensors", "state.json"
ADVICE = "give the folder `weights` of a finished run"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A trained model on disk: the run that trained it, and where its tensors are."""

    folder: Path
    run: RunSpec
    weights_hash: str  # sha256 of the tensor file
    tensor_names: Mapping[str, str]  # name in the model -> name in the file

    @property
    def flops_per_token(self) -> float:
        """Forward FLOPs, attention as in the run's own sequences."""
        return float(self.run.model.cost(self.run.trainer.sequence_length).forward_flops_per_token)

    @property
    def training_flops(self) -> int:
        run = self.run
        return run.n_tokens * run.model.cost(run.trainer.sequence_length).training_flops_per_token


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """The checkpoint in a folder, every part checked by its hash; ValueError if it is none, or torn."""
    folder = Path(folder)
    try:
        facts = tuple((folder / name).stat() for name in (MANIFEST, TENSORS, STATE))
    except OSError as error:
        raise ValueError(f"the teacher {folder} is no checkpoint ({error}); {ADVICE}") from None
    return _checkpoint(folder, tuple((f.st_mtime_ns, f.st_size) for f in facts))


@lru_cache(maxsize=8)
def _checkpoint(folder: Path, stamps: tuple[tuple[int, int], ...]) -> Checkpoint:
    # A design resolves thousands of variants, so the weights are hashed once while they stay as they are.
    from ablate.components.codec import decode_run

    try:
        hashes = json.loads((folder / MANIFEST).read_bytes())
        parts = {name: (folder / name).read_bytes() for name in (TENSORS, STATE)}
        state = json.loads(parts[STATE])
    except (OSError, ValueError) as error:
        raise ValueError(f"the teacher {folder} is no checkpoint ({error}); {ADVICE}") from None
    for name, content in parts.items():
        if not isinstance(hashes, dict) or hashes.get(name) != hashlib.sha256(content).hexdigest():
            raise ValueError(f"the teacher {folder} is torn ({name} does not match its hash); {ADVICE}")
    if not isinstance(state, dict) or "spec" not in state or "state_dict" not in state:
        raise ValueError(f"the teacher {folder} does not say which model its weights are of; {ADVICE}")
    return Checkpoint(
        folder=folder,
        run=decode_run(state["spec"]),
        weights_hash=hashes[TENSORS],
        tensor_names={name: _tensor_name(item) for name, item in state["state_dict"].items()},
    )


def _tensor_name(item: Any) -> str:
    return str(item["name"]) if isinstance(item, dict) else ""


def load_model(checkpoint: Checkpoint) -> Transformer:
    """The model in evaluation mode, without gradients. ValueError if the weights are not those of its specification."""
    from safetensors.torch import load_file

    from ablate.model.transformer import Transformer

    model = Transformer(checkpoint.run.model.portable())
    tensors = load_file(checkpoint.folder / TENSORS)
    try:
        model.load_state_dict({name: tensors[key] for name, key in checkpoint.tensor_names.items()})
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"the weights in {checkpoint.folder} do not fit the model that the run describes ({error})"
        ) from None
    return model.requires_grad_(False).eval()
