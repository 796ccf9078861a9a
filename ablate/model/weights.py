"""The weights of a finished run on disk: one folder, written whole, verified when read, with nothing to execute in it.

Its manifest says what they are: the run's whole specification, and the facts that others need without building a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ablate.files import MANIFEST, commit_folder, damage, new_folder, read_sealed
from ablate.spec.decoding import FORBID_UNKNOWN, data_id, decode, encode, run_id

if TYPE_CHECKING:
    from torch import Tensor

    from ablate.spec.run import RunSpec

TENSORS = "tensors.safetensors"
FORMAT = 2
ADVICE = (
    "give the folder `weights` of a finished run of this version of the program, or move that run's record and weights "
    "away and give the study's command again: it trains the run anew"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsManifest:
    """What a folder of weights says of itself."""

    run_id: str
    run: Mapping[str, Any]  # RunSpec as plain data
    vocab_size: int
    corpus_hash: str
    sequence_length: int
    parameters: int  # of the model as deployed
    training_tokens: int
    training_flops: int
    flops_per_token: int  # forward, attention as in the run's own sequences
    format: int = FORMAT

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """A verified folder of weights; `hash` is the sha256 of its tensors."""

    folder: Path
    hash: str
    manifest: WeightsManifest


def write_weights(folder: Path, state_dict: Mapping[str, Tensor], run: RunSpec) -> None:
    """Put a model's weights at `folder`, whole or not at all; sound ones that are there already stay."""
    cost = run.model.cost(run.trainer.sequence_length)
    manifest = WeightsManifest(
        run_id=run_id(run),
        run=encode(run),
        vocab_size=run.model.vocab_size,
        corpus_hash=run.corpus_hash,
        sequence_length=run.trainer.sequence_length,
        parameters=cost.main.parameters,
        training_tokens=run.n_tokens,
        training_flops=run.n_tokens * cost.training_flops_per_token,
        flops_per_token=cost.forward_flops_per_token,
    )
    from ablate.model.tensor_file import save_tensors

    with new_folder(folder.parent, f"the weights {folder}") as place:
        hashed = {TENSORS: save_tensors(state_dict, place / TENSORS)}
        commit_folder(place, folder, asdict(manifest), hashed)
    if (read_sealed(folder / MANIFEST) or {}).get("run_id") != manifest.run_id:
        raise ValueError(f"{folder} holds the weights of another run; move it away and give the same command again")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name; ValueError names a file that is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"cannot read the tensors {path}: {error}") from None


def read_weights(folder: str | Path) -> Weights:
    """The weights in a folder, every part checked by its hash; ValueError if there are none, or they are torn."""
    folder = Path(folder)
    try:
        stamps = tuple((folder / name).stat() for name in (MANIFEST, TENSORS))
    except OSError as error:
        raise ValueError(f"{folder} holds no weights ({error}); {ADVICE}") from None
    return _read(folder, tuple((stamp.st_mtime_ns, stamp.st_size) for stamp in stamps))


@lru_cache(maxsize=8)
def _read(folder: Path, stamps: tuple[tuple[int, int], ...]) -> Weights:
    # A design resolves thousands of variants, so the tensors are hashed once while they stay as they are.
    if wrong := damage(folder, TENSORS):
        raise ValueError(f"the weights in {folder} are torn or of another version ({wrong}); {ADVICE}")
    sealed: dict[str, Any] = read_sealed(folder / MANIFEST) or {}
    facts = {name: value for name, value in sealed.items() if name != "files"}
    manifest = decode(WeightsManifest, facts, f"the weights in {folder}")
    if manifest.format != FORMAT or manifest.run_id != data_id(manifest.run):
        raise ValueError(f"the weights in {folder} are of another version, or not of the run they name; {ADVICE}")
    return Weights(folder=folder, hash=sealed["files"][TENSORS]["sha256"], manifest=manifest)


def load_state(weights: Weights) -> dict[str, Tensor]:
    """The tensors by the model's names."""
    return load_tensors(weights.folder / TENSORS)
