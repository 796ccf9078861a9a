"""Checkpoints as safetensors and JSON with a manifest of hashes: durable when written, verified when read.

One process copies its state at a step boundary and goes on; a thread writes the copy, hashes it on the way, and gives
the checkpoint its name when all of it is on the disk. Ranks write together, and wait.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from ablate.documents import read_json
from ablate.files import MANIFEST, commit_folder, damage, new_folder, read_sealed, remove_folder
from ablate.model.tensor_file import save_tensors
from ablate.model.weights import load_tensors
from ablate.parallel.pieces import Rows

TENSORS, STATE, PROGRAM = "tensors.safetensors", "state.json", "program.json"
RANK_TENSORS = "tensors-{:05d}.safetensors"  # of further ranks
STEP = "step-"
N_KEPT = 2
N_DIGITS = 12  # of a step in a checkpoint's name, which then sorts by it

log = logging.getLogger(__name__)


class FolderCheckpoint(CheckpointIO):
    """Lightning's checkpoint as a folder. Nothing in it is executed when it is read (no pickle).

    One is written at a time; `write_s` are the seconds that the last one took, copying and waiting included.
    """

    def __init__(self) -> None:
        self.write_s = 0.0
        self._thread: Thread | None = None
        self._fault: Exception | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Returns when the state is copied; raises what the writing of the one before raised."""
        self.wait()
        start, tensors = time.monotonic(), dict[str, Tensor]()
        state = flatten(checkpoint, "", tensors)
        copies = {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}
        # Not a daemon: a process that ends waits for it.
        self._thread = Thread(target=self._write, args=(Path(path), state, copies, start), name=f"writer of {path}")
        self._thread.start()

    def _write(self, folder: Path, state: Any, tensors: dict[str, Tensor], start: float) -> None:
        try:
            write_flat(folder, state, tensors)
            prune(folder)
        except Exception as fault:  # for the thread that trains
            self._fault = fault
        self.write_s = time.monotonic() - start

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def check(self) -> None:
        """Raise what writing has raised, once."""
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def wait(self) -> None:
        """Return when nothing is being written; raise what writing has raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def teardown(self) -> None:
        """At the end of training, however it ended: what was asked for is on the disk, or the reason is raised."""
        self.wait()

    def save_together(self, checkpoint: dict[str, Any], path: Path) -> None:
        """A checkpoint of which every rank has a part: of the model's state and of the optimizer's."""
        start = time.monotonic()
        write_together(path, checkpoint)
        if dist.get_rank() == 0:
            prune(path)
        self.write_s = time.monotonic() - start

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        return read(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        remove_folder(Path(path))


def write(folder: Path, checkpoint: dict[str, Any]) -> None:
    """A checkpoint under its final name, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    write_flat(folder, flatten(checkpoint, "", tensors), tensors)


def write_flat(folder: Path, state: Any, tensors: Mapping[str, Tensor]) -> None:
    """The same of what `flatten` has taken apart."""
    with new_folder(folder.parent, f"the checkpoint {folder}") as place:
        hashed = {TENSORS: save_tensors(tensors, place / TENSORS)}
        (place / STATE).write_text(json.dumps(state, allow_nan=True), encoding="utf-8")
        commit_folder(place, folder, {"place": _place(folder)}, hashed)


def write_together(folder: Path, checkpoint: dict[str, Any]) -> None:
    """The same checkpoint from all ranks: each writes its tensors to a file of its own, the first the manifest, last.

    What is written does not know the ranks: it reads as one process had written it.
    """
    rank, tensors = dist.get_rank(), dict[str, Tensor]()
    state = flatten(checkpoint, "", tensors)
    with new_folder(folder.parent, f"the checkpoint {folder}") if rank == 0 else nullcontext() as made:
        shared = [made]
        dist.broadcast_object_list(shared)
        place = shared[0]
        assert place is not None
        name = TENSORS if rank == 0 else RANK_TENSORS.format(rank)
        save_tensors(tensors, place / name)
        parts: list[Any] | None = [None] * dist.get_world_size() if rank == 0 else None
        dist.gather_object((state["state_dict"], state["optimizer_states"]), parts)  # and all have written theirs
        if parts is not None:
            models, optimizers = zip(*parts, strict=True)
            state["state_dict"] = _together(models)
            for i, optimizer in enumerate(state["optimizer_states"]):
                optimizer["state"] = _together([states[i]["state"] for states in optimizers])
            (place / STATE).write_text(json.dumps(state, allow_nan=True), encoding="utf-8")
            commit_folder(place, folder, {"place": _place(folder)})
    dist.barrier()


def _together(parts: Sequence[Any]) -> Any:
    """One flattened value from what the ranks have of it: dictionaries joined key by key, rows piece by piece."""
    some = parts[0]
    if not isinstance(some, dict) or some.get("!") == "tensor":
        return some
    if some.get("!") == "rows":
        return {"!": "rows", "pieces": sorted(piece for part in parts for piece in part["pieces"])}
    if all(part.get("!", "dict") == "dict" for part in parts) and any("!" in part for part in parts):
        items: dict[Any, list[Any]] = {}
        for key, item in (pair for part in parts for pair in part.get("items", [])):
            items.setdefault(key, []).append(item)
        return {"!": "dict", "items": [[key, _together(found)] for key, found in items.items()]}
    named: dict[str, list[Any]] = {}
    for key, item in (pair for part in parts for pair in part.items()):
        named.setdefault(key, []).append(item)
    return {key: _together(found) for key, found in named.items()}


def _place(folder: Path) -> list[str]:
    """Run and step that a checkpoint belongs to: elsewhere it is another's. Attempts may hand theirs on."""
    return [folder.absolute().parent.parent.parent.name, folder.name]


def read(folder: Path) -> dict[str, Any]:
    """The checkpoint of a folder; ValueError if a part is missing or altered, or it is not in its place."""
    if wrong := damage(folder, TENSORS, STATE):
        raise ValueError(f"the checkpoint {folder} is torn ({wrong})")
    place = (read_sealed(folder / MANIFEST) or {}).get("place")
    if place != _place(folder):
        raise ValueError(f"the checkpoint {folder} is not that of its name (it was written as {place})")
    tensors = {
        name: t for file in sorted(folder.glob("tensors*.safetensors")) for name, t in load_tensors(file).items()
    }
    return unflatten(json.loads((folder / STATE).read_text(encoding="utf-8")), tensors)


def newest_valid(attempts: Path, program: Mapping[str, Any], branch: str = "") -> Path | None:
    """The checkpoint of most steps, among attempts made by the same program, that reads without fault.

    `branch`: the name of a branch, whose own checkpoints are looked for; "" for the trunk's.

    A checkpoint of other code or other packages is not continued: the run begins again, since nothing would say that
    its two halves belong together. A damaged one is passed over with a warning.
    """
    found = sorted(attempts.glob(f"*/{branch}{STEP}" + "[0-9]" * N_DIGITS), key=lambda p: (p.name, p.parent.name))
    for folder in reversed(found):
        try:
            if (
                read_json(folder.parent / PROGRAM, "the program of the checkpoints", "they are not gone on from")
                != program
            ):
                continue
            read(folder)
        except (OSError, ValueError) as error:
            log.warning("%s; the run goes on from an earlier checkpoint, or begins again", error)
            continue
        return folder
    return None


def prune(written: Path) -> None:
    """Remove the checkpoints of a trunk or branch but the last two, after `written` was written whole."""
    branch = written.name[: -len(STEP) - N_DIGITS]
    for folder in sorted(written.parent.glob(f"{branch}{STEP}" + "[0-9]" * N_DIGITS))[:-N_KEPT]:
        remove_folder(folder)


def drop_checkpoints(attempts: Iterable[Path]) -> None:
    """Remove the checkpoints of attempts that have ended, once their run has a record: nobody goes on from them."""
    for attempt in attempts:
        for folder in attempt.glob("*step-*"):
            remove_folder(folder)


def checkpoint_path(attempt: Path, step: int, branch: str = "") -> Path:
    return attempt / f"{branch}{STEP}{step:0{N_DIGITS}d}"


def step_of(checkpoint: Path) -> int:
    """The optimizer step that a checkpoint was written after."""
    return int(checkpoint.name[-N_DIGITS:])


def flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, tensors taken out into `tensors`. Raises TypeError for what has no faithful JSON."""
    if isinstance(value, Tensor):
        tensors[name] = value  # no copy
        return {"!": "tensor", "name": name}
    if isinstance(value, Rows):
        own = f"{name}/from row {value.start}"
        tensors[own] = value.tensor.clone()
        return {"!": "rows", "pieces": [[value.start, own]]}
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value) and "!" not in value:
            return {key: flatten(item, f"{name}/{key}", tensors) for key, item in value.items()}
        items = [[key, flatten(item, f"{name}/{key}", tensors)] for key, item in value.items()]
        return {"!": "dict", "items": items}
    if isinstance(value, (list, tuple)):
        items = [flatten(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"!": "tuple", "items": items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint cannot hold {name}, a {type(value).__name__}")


def unflatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of flatten."""
    if isinstance(value, list):
        return [unflatten(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get("!")
    if kind == "tensor":
        return tensors[value["name"]]
    if kind == "rows":
        return torch.cat([tensors[name] for _, name in value["pieces"]])
    if kind == "tuple":
        return tuple(unflatten(item, tensors) for item in value["items"])
    if kind == "dict":
        return {key: unflatten(item, tensors) for key, item in value["items"]}
    return {key: unflatten(item, tensors) for key, item in value.items()}


def random_state() -> dict[str, Any]:
    """Every random generator that a run may draw from."""
    import random

    import numpy as np

    version, internal, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, cached = legacy
    state = {
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(keys.astype("int64")), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """The inverse of random_state."""
    import random

    import numpy as np

    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype("uint32"), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])


def state_hash(tensors: Iterator[tuple[str, Tensor]]) -> str:
    """sha256 over names, shapes and bytes: equal exactly when the weights are, bit for bit."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
