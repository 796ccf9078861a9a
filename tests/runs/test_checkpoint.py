"""Checkpoints read back exactly, tell when they are torn, and are never continued by another program."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from threading import Event, Timer
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ablate.components.variants import Variant
from ablate.files import MANIFEST, CannotWrite, read_sealed, write_sealed
from ablate.model import tensor_file
from ablate.model.weights import load_state, load_tensors, read_weights, write_weights
from ablate.presets import preset
from ablate.spec.decoding import run_id
from ablate.spec.machine import this_machine
from ablate.spec.run import RunSpec
from ablate.training import callbacks, checkpoint
from ablate.training.checkpoint import (
    PROGRAM,
    FolderCheckpoint,
    checkpoint_path,
    newest_valid,
    prune,
    random_state,
    read,
    restore_random_state,
    write,
)

PROGRAM_FACTS = {"packages": {"torch": "x"}}


def sample() -> dict[str, Any]:
    return {
        "weights": {"a": torch.randn(3, 4), "b": torch.arange(5), "empty": torch.empty(0)},
        "optimizer": {0: {"step": torch.tensor(3.0), "betas": (0.9, 0.95)}, 1: [1, None, "x", True, 0.1]},
        "nested": [{"!": "a dict with the mark"}, (), {}],
        "nan": float("nan"),
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def attempt(folder: Path, name: str, steps: list[int], program: Any = PROGRAM_FACTS) -> Path:
    made = folder / name
    made.mkdir(parents=True)
    (made / PROGRAM).write_text(json.dumps(program))
    for step in steps:
        write(checkpoint_path(made, step), {"global_step": step})
    return made


def test_a_checkpoint_reads_back_exactly(tmp_path: Path) -> None:
    tree = sample()
    write(tmp_path / "step-1", tree)
    assert same(tree, read(tmp_path / "step-1"))
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]


def test_what_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot hold /x, a set"):
        write(tmp_path / "step-1", {"x": {1, 2}})


def test_every_flipped_bit_and_cut_is_seen(tmp_path: Path) -> None:
    write(tmp_path / "step-1", sample())
    draw = random.Random(0)
    for name in ("tensors.safetensors", "state.json", "manifest.json"):
        path = tmp_path / "step-1" / name
        good = path.read_bytes()
        for _ in range(20):
            at = draw.randrange(len(good))
            path.write_bytes(good[:at] + bytes([good[at] ^ 1 << draw.randrange(8)]) + good[at + 1 :])
            with pytest.raises(ValueError, match="torn"):
                read(tmp_path / "step-1")
        path.write_bytes(good[: draw.randrange(len(good))])
        with pytest.raises(ValueError, match="torn"):
            read(tmp_path / "step-1")
        path.unlink()
        with pytest.raises(ValueError, match="torn"):
            read(tmp_path / "step-1")
        path.write_bytes(good)
    assert same(sample()["nested"], read(tmp_path / "step-1")["nested"])


def test_the_newest_whole_checkpoint_of_any_attempt_is_found(tmp_path: Path) -> None:
    attempt(tmp_path, "0000-a", [5, 20])
    later = attempt(tmp_path, "0001-b", [10])
    found = newest_valid(tmp_path, PROGRAM_FACTS)
    assert found is not None
    assert found.name.endswith("20")
    (found / "state.json").write_text("{}")
    assert newest_valid(tmp_path, PROGRAM_FACTS) == checkpoint_path(later, 10)


def test_a_checkpoint_under_another_name_is_never_gone_on_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = tmp_path / "run-1" / "attempts", tmp_path / "run-2" / "attempts"
    made, foreign = attempt(one, "0000-a", [5]), attempt(other, "0000-a", [7])
    shutil.copytree(checkpoint_path(foreign, 7), checkpoint_path(made, 7))
    shutil.copytree(checkpoint_path(made, 5), checkpoint_path(made, 9))
    assert newest_valid(one, PROGRAM_FACTS) == checkpoint_path(made, 5)
    assert [str(checkpoint_path(made, step)) in r.message for step, r in zip((9, 7), caplog.records, strict=True)]
    shutil.copytree(checkpoint_path(made, 5), checkpoint_path(attempt(one, "0001-b", []), 5))
    assert newest_valid(one, PROGRAM_FACTS) == checkpoint_path(one / "0001-b", 5)


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"{", bytes(range(256)), b"[]"])
def test_a_damaged_program_file_leaves_its_checkpoints_out(content: bytes, tmp_path: Path) -> None:
    attempt(tmp_path, "0000-a", [5])
    (tmp_path / "0000-a" / PROGRAM).write_bytes(content)
    (tmp_path / "0000-a" / "step-last").mkdir()
    assert newest_valid(tmp_path, PROGRAM_FACTS) is None


@pytest.fixture
def run() -> RunSpec:
    spec = Variant.none().resolve(preset("nano")).for_machine(this_machine())
    return spec.run(corpus_hash="c", seed=0, n_steps=1)


def test_weights_are_those_of_the_run_they_name(run: RunSpec, tmp_path: Path) -> None:
    other = replace(run, seed=1)
    write_weights(tmp_path / "weights", {"a": torch.ones(2)}, run)
    assert read_weights(tmp_path / "weights").manifest.run_id == run_id(run)
    with pytest.raises(ValueError, match=r"weights holds the weights of another run; move it away"):
        write_weights(tmp_path / "weights", {"a": torch.zeros(2)}, other)
    assert torch.equal(load_state(read_weights(tmp_path / "weights"))["a"], torch.ones(2))
    facts = read_sealed(tmp_path / "weights" / MANIFEST)
    for change in ({"run_id": run_id(other)}, {"format": 1}, {"files": {}}, {"surprise": 1}, {"run": {}}):
        write_sealed(tmp_path / "weights" / MANIFEST, facts | change)
        with pytest.raises(ValueError, match=str(tmp_path / "weights")):
            read_weights(tmp_path / "weights")


@pytest.mark.parametrize("name", ["weights", "step-000000000001"])
def test_a_full_disk_is_told_whoever_finds_it_out(
    name: str, run: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tensor_file, "open", full, raising=False)
    what = "weights" if name == "weights" else "checkpoint"
    with pytest.raises(CannotWrite, match=f"cannot write the {what} {tmp_path / name}: No space left .*; make room"):
        write_weights(tmp_path / name, {}, run) if name == "weights" else write(tmp_path / name, {})
    assert list(tmp_path.iterdir()) == []


def test_tensors_are_written_as_the_library_writes_them_and_hashed_on_the_way(tmp_path: Path) -> None:
    from safetensors.torch import save

    whole = torch.randn(6, 4)
    tensors = {f"of {dtype}": torch.ones(3, 5).to(dtype) for dtype in tensor_file.NAMES}
    tensors |= {"b": whole[2:], "a": whole.T, "nothing": torch.empty(0, 3), "one": torch.tensor(2.0), "ü": whole[0]}
    facts = tensor_file.save_tensors(tensors, tmp_path / "x")
    content = (tmp_path / "x").read_bytes()
    assert content == save({name: t.clone().contiguous() for name, t in tensors.items()})
    assert facts == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    read_back = load_tensors(tmp_path / "x")
    assert all(torch.equal(read_back[name].double(), t.double()) for name, t in tensors.items())
    with pytest.raises(ValueError, match="complex64 cannot be written"):
        tensor_file.save_tensors({"z": torch.zeros(1, dtype=torch.complex64)}, tmp_path / "y")


def test_writing_takes_no_more_than_its_share_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only training (a second a step) and writing (three) move: 5000 steps."""
    now, written = [0.0], []

    class Trainer:
        global_step, is_global_zero = 0, True
        files = SimpleNamespace(write_s=0.0, busy=False, check=lambda: None)
        strategy = SimpleNamespace(reduce_boolean_decision=lambda value, all: value, checkpoint_io=files)

        def save_checkpoint(self, path: Path) -> None:
            written.append(now[0])
            now[0] += 3.0
            self.files.write_s = 3.0

    weights = torch.nn.Linear(10, 10)
    module = SimpleNamespace(n_micro_batches=1, run=SimpleNamespace(n_steps=10_000), parameters=weights.parameters)
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    keeper = callbacks.Keeper(tmp_path, 30.0, SimpleNamespace(take_losses=lambda *_: None), lambda: False)  # type: ignore[arg-type]
    trainer = Trainer()
    keeper.on_train_start(trainer, module)
    assert keeper.interval_s == 30.0  # 440 bytes are written in no time
    for step in range(5000):
        now[0] += 1.0
        trainer.global_step, trainer.files.busy = step + 1, 29 <= step < 40
        keeper.on_train_batch_end(trainer, module, None, None, step)
    assert written[0] == 41.0  # not at 30, when another was being written
    assert keeper.interval_s == 150.0
    assert 3.0 * len(written) <= 0.02 * now[0] + 3.0
    assert len(written) > 25


class Held:
    """Stands for the writing of tensors, which waits until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.begun = Event(), Event()
        monkeypatch.setattr(checkpoint, "save_tensors", self)

    def __call__(self, tensors: Any, path: Path) -> dict[str, Any]:
        self.begun.set()
        assert self.go.wait(20)
        return tensor_file.save_tensors(tensors, path)


def test_what_is_written_is_the_state_when_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training changes weights, moments and the curve while they are being written; the name comes last."""
    held, files = Held(monkeypatch), FolderCheckpoint()
    weight, points = torch.zeros(3, 4), [1.0]
    files.save_checkpoint({"weight": weight, "row": weight[1], "points": points}, tmp_path / "0000-a" / "step-1")
    assert held.begun.wait(20)
    weight.add_(1.0)
    points.append(2.0)
    assert files.busy
    assert not list(tmp_path.glob("*/step-1"))
    held.go.set()
    files.teardown()
    found = read(tmp_path / "0000-a" / "step-1")
    assert same(found, {"weight": torch.zeros(3, 4), "row": torch.zeros(4), "points": [1.0]})
    assert files.write_s > 0
    assert not files.busy


def test_one_checkpoint_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, files, paths = Held(monkeypatch), FolderCheckpoint(), [checkpoint_path(tmp_path, n) for n in (1, 2, 3)]
    files.save_checkpoint({"n": 1}, paths[0])
    assert held.begun.wait(20)
    Timer(0.05, held.go.set).start()
    for n, path in enumerate(paths[1:], 2):
        files.save_checkpoint({"n": n}, path)
        assert read(paths[n - 2])["n"] == n - 1  # the one before is whole
    files.wait()
    assert sorted(tmp_path.iterdir()) == paths[1:]  # and the last two stay


def test_what_could_not_be_written_stops_training_at_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    files = FolderCheckpoint()
    trainer = SimpleNamespace(global_step=1, strategy=SimpleNamespace(checkpoint_io=files))
    module = SimpleNamespace(n_micro_batches=1, run=SimpleNamespace(n_steps=9))
    keeper = callbacks.Keeper(tmp_path, 30.0, SimpleNamespace(), lambda: False)  # type: ignore[arg-type]
    for after in (
        files.wait,
        files.teardown,
        lambda: files.save_checkpoint({}, tmp_path / "step-2"),
        lambda: keeper.on_train_batch_end(trainer, module, None, None, 0),
    ):
        files.save_checkpoint({}, tmp_path / "step-1")
        assert files._thread is not None
        files._thread.join()
        with pytest.raises(CannotWrite, match=r"cannot write the checkpoint .*step-1: No space left .*; make room"):
            after()
        files.wait()  # it is told once
        assert not list(tmp_path.iterdir())


def test_a_file_that_holds_no_tensors_is_named(tmp_path: Path) -> None:
    for content in (b"", b"\xff" * 99, b"\0" * 8):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(ValueError, match=f"cannot read the tensors {tmp_path / 'x'}"):
            load_tensors(tmp_path / "x")


def test_another_program_does_not_continue_it(tmp_path: Path) -> None:
    attempt(tmp_path, "0000-a", [5], program={"packages": {"torch": "y"}})
    assert newest_valid(tmp_path, PROGRAM_FACTS) is None
    assert newest_valid(tmp_path / "absent", PROGRAM_FACTS) is None


def test_pruning_leaves_the_last_two(tmp_path: Path) -> None:
    made = attempt(tmp_path, "0000-a", [5, 10, 100])
    shutil.copytree(checkpoint_path(made, 5), checkpoint_path(made, 5, "branch-7-"))
    prune(checkpoint_path(made, 100))
    assert checkpoint_path(made, 5, "branch-7-").exists()
    assert sorted(p.name for p in made.glob("step-*")) == [checkpoint_path(made, s).name for s in (10, 100)]


def test_random_generators_go_on_where_they_were(tmp_path: Path) -> None:
    write(tmp_path / "step-1", random_state())

    def draw() -> tuple[Any, ...]:
        return random.random(), np.random.rand(), np.random.randn(), torch.rand(2).tolist()

    first = draw()
    restore_random_state(read(tmp_path / "step-1"))
    assert draw() == first
