"""Faults of files and disks: writes refused, disks full, files damaged, missing or exchanged, another program's."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fault_ground import Try
from forked import REFUSALS, Writes, limit_files, refuse

from ablate.files import MANIFEST, read_sealed
from ablate.model.weights import TENSORS
from ablate.runs import environment
from ablate.training.checkpoint import PROGRAM, newest_valid

CONTENTS = (
    b"\0" * 512,
    bytes(range(256)),
    b"[" * 100_000,
    b"[]",
    b"null",
    b'{"sha256": 5}',
    b'{"value": {}, "sha256": ""}',
    b'{"a": 1e999}',
    b'{"a": NaN, "a": 1}',
    b'{"a": ' + b"9" * 5000 + b"}",
    b'{"a": "\\ud800"}',
)


def refused_write(this: Try) -> None:
    """A full disk and its like: at one write, or from one on."""
    first, for_good, number = this.draw.randint(1, this.ground.n_writes), this.draw.random() < 0.5, None
    number = this.draw.choice(REFUSALS)

    def act(n: int, path: str) -> None:
        if (n == first or (for_good and n > first)) and str(this.place) in path:
            refuse(number)

    done = this.end(this.begin(prepare=Writes().watch(act)))
    if done.code and not (done.says(os.strerror(number)) and done.says(this.place)):
        this.fail("unclear", f"{os.strerror(number)} is not told\n{done.text}")
    before = this.before()
    this.finish()
    this.compare(before)


def small_files_only(this: Try) -> None:
    """A limit on the size of files, as a full disk in the middle of one."""
    done = this.end(this.begin(prepare=partial(limit_files, this.draw.randint(20_000, 150_000))))
    if done.code and not done.says(this.place):
        this.fail("unclear", f"no path is told\n{done.text}")
    before = this.before()
    this.finish()
    this.compare(before)


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    """A file system in memory of so many bytes at a folder, as long as this lasts. Root mounts one."""
    if os.getuid():
        raise RuntimeError("a small disk is mounted by root only; leave this kind out with --only")
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True, capture_output=True)


def full_disk(this: Try) -> None:
    """A small file system that is full at some point; then it is made larger, and the same command given again."""
    with small_disk(this.out, f"{this.draw.randint(40, 1200)}k"):
        _on_that_disk(this, errno.ENOSPC, "size=100m")


def read_only_disk(this: Try) -> None:
    """A file system that is made read-only at a random time, as one with faults is; then it is writable again."""
    with small_disk(this.out, "100m"):
        command = this.begin()
        this.sleep()
        while command.state:
            try:
                remount(this.out, "ro")
                break
            except subprocess.CalledProcessError:  # somebody writes just now
                time.sleep(0.01)
        this.met = bool(command.state)
        done = this.end(command)
        if done.code and not (done.says(os.strerror(errno.EROFS)) and done.says(this.place)):
            this.fail("unclear", f"{os.strerror(errno.EROFS)} is not told\n{done.text}")
        remount(this.out, "rw")
        before = this.before()
        this.finish()
        this.compare(before)


def _on_that_disk(this: Try, number: int, cure: str) -> None:
    done = this.end(this.begin())
    this.met = done.code != 0
    if done.code and not (done.says(os.strerror(number)) and done.says(this.place)):
        this.fail("unclear", f"{os.strerror(number)} is not told\n{done.text}")
    remount(this.out, cure)
    before = this.before()
    this.finish()
    this.compare(before)


def damage_file(this: Try, path: Path) -> bytes:
    """Flip a bit, cut the file short, empty it, or put something foreign in its place; what it was before."""
    good = path.read_bytes()
    how = this.draw.choice(["flipped", "cut", "emptied", "foreign"])
    if how == "flipped":
        bit = this.draw.randrange(8 * len(good))
        bad = good[: bit // 8] + bytes([good[bit // 8] ^ 1 << bit % 8]) + good[bit // 8 + 1 :]
    elif how == "cut":
        bad = good[: this.draw.randrange(len(good))]
    else:
        bad = b"" if how == "emptied" else this.draw.choice(CONTENTS)
    path.unlink()  # never the file that another folder links to
    path.write_bytes(bad)
    this.notes.append(f"{how}: {path.name}")
    return good


def pick(this: Try, *patterns: str) -> Path:
    return this.draw.choice(sorted(p for pattern in patterns for p in this.out.glob(pattern) if p.is_file()))


def damaged_record(this: Try) -> None:
    shutil.copytree(this.ground.whole, this.out)
    path = pick(this, "records/*.json")
    damage_file(this, path)
    this.expect(this.call("report", str(this.out)), path)
    if this.thorough:
        this.expect(this.call(*this.ground.arguments(this.out)), path)
        path.unlink()
        this.finish()


def damaged_plan(this: Try) -> None:
    shutil.copytree(this.ground.whole, this.out)
    damage_file(this, this.out / "plan.json")
    this.expect(this.call("report", str(this.out)), this.out / "plan.json")
    if this.thorough:
        this.finish()


def damaged_study_file(this: Try) -> None:
    """What the same command writes anew."""
    shutil.copytree(this.ground.whole, this.out)
    path = pick(this, *(["tokenizer.json", "study.toml"] if this.thorough else ["tokenizer.json"]))
    damage_file(this, path)
    if path.name == "tokenizer.json":
        run = min((this.out / "runs").iterdir())
        this.expect(this.call("export", str(run), "--out", str(this.place / "export")), path)
    if this.thorough:
        this.finish()


def damaged_weights(this: Try) -> None:
    shutil.copytree(this.ground.whole, this.out)
    path = pick(this, f"runs/*/weights/{TENSORS}", f"runs/*/weights/{MANIFEST}")
    damage_file(this, path)
    run = path.parents[1]
    this.expect(this.call("export", str(run), "--out", str(this.place / "export")), path.parent)
    if this.thorough:
        shutil.rmtree(path.parent)
        (this.out / "records" / f"{run.name}.json").unlink()
        this.finish()


def damaged_checkpoint(this: Try) -> None:
    shutil.copytree(this.ground.stopped, this.out)
    path = pick(this, "runs/*/attempts/*/step-*/*", f"runs/*/attempts/*/{PROGRAM}")
    damage_file(this, path)
    if not this.thorough:
        attempts = path.relative_to(this.out).parents[-4]
        if path.parent == newest_valid(this.out / attempts, environment.program()):
            this.fail("wrong", f"{path} was damaged and would be gone on from")
        return
    before = this.before()
    # The kill can fall between a run's record and the end of its checkpoints, which nobody then reads.
    recorded = (this.out / "records" / f"{path.relative_to(this.out).parts[1]}.json").is_file()
    done = this.finish()
    this.compare(before)
    newest = max(path.parents[1].glob("step-*"), default=path) if path.parent.name.startswith("step-") else None
    if newest == path.parent and not recorded and not done.says(path.parent):
        this.fail("unclear", f"{path} was damaged, and it is not told\n{done.text}")


def missing_file(this: Try) -> None:
    """A part of a checkpoint, of weights or of a record's folder is gone."""
    shutil.copytree(this.ground.stopped, this.out)
    path = pick(this, "runs/*/attempts/*/step-*/*", f"runs/*/weights/{TENSORS}", f"runs/*/weights/{MANIFEST}")
    path.unlink()
    this.notes.append(f"missing: {path.relative_to(this.out)}")
    if path.parent.name == "weights":
        run = path.parents[1]
        this.expect(this.call("export", str(run), "--out", str(this.place / "export")), path.parent)
        shutil.rmtree(path.parent)
        (this.out / "records" / f"{run.name}.json").unlink(missing_ok=True)
    elif path.parent == newest_valid(path.parents[2], environment.program()):
        this.fail("wrong", f"{path} is missing and its checkpoint would be gone on from")
    before = this.before()
    this.finish()
    this.compare(before)


def exchanged(this: Try) -> None:
    """Records, weights or checkpoints of two runs in each other's place."""
    what = this.draw.choice(["records/*.json", "runs/*/weights", "checkpoints"])
    shutil.copytree(this.ground.stopped if what == "checkpoints" else this.ground.whole, this.out)
    there = sorted(this.out.glob(what))
    if what == "checkpoints":  # of each run the newest, since an older one is not looked at
        newest = (max(attempt.glob("step-*"), default=None) for attempt in this.out.glob("runs/*/attempts/*"))
        there = sorted(filter(None, newest))
    if len(there) < 2:
        this.met = False
        return
    one, other = this.draw.sample(there, 2)
    this.notes.append(f"exchanged: {one.relative_to(this.out)}, {other.relative_to(this.out)}")
    aside = this.place / "aside"
    for source, target in ((one, aside), (other, one), (aside, other)):
        os.rename(source, target)
    if what == "checkpoints":
        valid = {newest_valid(path.parents[1], environment.program()) for path in (one, other)}
        if valid & {one, other}:
            this.fail("wrong", f"{one} and {other} were exchanged, and one would be gone on from")
    elif one.suffix:
        this.expect(this.call("report", str(this.out)), "record")
    else:
        this.expect(this.call("export", str(one.parent), "--out", str(this.place / "export")), one.parent)
    for path in (one, other) if what != "checkpoints" else ():  # what the messages ask for
        run = path.stem if path.suffix else path.parent.name
        (this.out / "records" / f"{run}.json").unlink()
        shutil.rmtree(this.out / "runs" / run / "weights")
    before = this.before()
    this.finish()
    this.compare(before)


def other_program(this: Try) -> None:
    """The code or a package was changed after the checkpoints were written: no run goes on from them."""
    shutil.copytree(this.ground.stopped, this.out)
    for path in this.out.glob(f"runs/*/attempts/*/{PROGRAM}"):
        program = json.loads(path.read_text())
        name = this.draw.choice(sorted(program))
        path.unlink()  # never the file that another folder links to
        path.write_text(json.dumps(program | {name: "of another time"}))
        if newest_valid(path.parents[1], environment.program()):
            this.fail("wrong", f"{path} differs in {name}, and its checkpoints would be gone on from")
    before = this.before()
    this.finish()
    this.compare(before)


def damaged_note(this: Try) -> None:
    shutil.copytree(this.ground.stopped, this.out)
    path = pick(this, "runs/*/attempts/*/failure.json")
    damage_file(this, path)
    this.expect(this.call("report", str(this.out)), path)
    if this.thorough:
        path.unlink()
        this.finish()


def damaged_cache(this: Try) -> None:
    cache = this.place / "cache"
    shutil.copytree(this.ground.cache, cache)
    # A compiled library is read once by a process, and the warm one has it (tests/kernels/test_compiled.py damages it).
    # What was timed is written by the end of a study alone, and with other times.
    left = {"native"} if this.thorough else {"native", "times"}
    files = sorted(p for p in cache.rglob("*") if p.is_file() and not left & set(p.parts))
    good = damage_file(this, path := this.draw.choice(files))
    if this.thorough:
        this.finish(cache=cache)
    else:
        this.call("data", "prepare", str(this.ground.text), "--vocab-size", "320", cache=cache)
    if path.read_bytes() != good and path.parent.name == "tokenizers":
        # It is not read while the corpus that it encoded is there: with that gone it is.
        for corpus in list(cache.rglob("manifest.json")):
            shutil.rmtree(corpus.parent, ignore_errors=True)
        this.call("data", "prepare", str(this.ground.text), "--vocab-size", "320", cache=cache)
    if path.read_bytes() != good and not ("times" in path.parts and read_sealed(path)):
        this.fail("torn", f"{path} is not mended")


def damaged_input(this: Try) -> None:
    """A file of the user's own: it is used, or refused in one sentence with its path."""
    preset, study = this.place / "preset.toml", this.place / "study.toml"
    shutil.copy(this.ground.preset, preset)
    shutil.copy(this.ground.whole / "study.toml", study)
    path = this.draw.choice([preset, study])
    damage_file(this, path)
    if path == preset:
        done = this.call("account", "--preset", str(preset))
    else:
        done = this.call("sweep", str(study), "--dry-run", "--out", str(this.out))
    if done.code not in (0, 2):
        this.fail("unclear", f"exit code {done.code}\n{done.text}")
