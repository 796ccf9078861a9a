"""Faults injected into the real command line: is a run ever lost, duplicated, torn or wrong, and is every fault told?

    python benchmarks/faults.py --count 400 --seed 1 --out results/faults

Each try is a small study (two variants, two seeds, preset nano) that is killed, interrupted, refused the disk, started
several times at once, or whose files are damaged; then the same command is given again. Counted are

- lost: a committed record that changed or went, or a run without one at the end;
- duplicated: a record that the undisturbed study has not;
- torn: a record, plan, study, tokenizer or folder of weights that is not whole at the end, or a file left unfinished;
- wrong: a record whose curve, data order, initial values or final weights are not bit for bit the undisturbed ones;
- unfinished: the same command (after what its message asked for) does not end well;
- unclear: a traceback, or an end without a sentence that says what and where.

A fault has the letter and number of the matrix of faults: F1 a killed worker or command, F2 a killed parent, F3 a kill
at a write, F4 signals, F7 a disk that refuses, F8 damage, F10 a hung worker, F13 the same command at once, F14 another
program, F15 temporary files on another file system. Not here: F5 (a local worker that hangs is killed, and comes not
back), F6, F9, F11 (`search_faults.py`), F12, R1 and S1 to S6, which have tests of their own or none. All of it is of
runs on this machine; runs through Slurm are disturbed by `slurm_study.py`.

Prints the table and writes it (table.md) beside the tries (tries.jsonl). A campaign that was stopped goes on. How the
commands differ from those of a user: `forked.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fault_ground import Ground, Try, end_at
from forked import REFUSALS, Writes, limit_files, refuse

from ablate.files import MANIFEST, read_sealed, replace_file
from ablate.model.weights import TENSORS
from ablate.runs import environment
from ablate.training.checkpoint import PROGRAM, newest_valid

COLUMNS = ("lost", "duplicated", "torn", "wrong", "unfinished", "unclear")
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


def killed_whole(this: Try) -> None:
    """SIGKILL of everything, one to three times in a row."""
    for _ in range(this.draw.randint(1, 3)):
        before, command = this.before(), this.begin()
        this.sleep()
        command.kill()
        this.compare(before)
    before = this.before()
    this.finish()
    this.compare(before)


def killed_at_a_write(this: Try) -> None:
    """SIGKILL of everything, just before something becomes durable; sometimes with a cache that is not there yet."""
    n = this.draw.randint(1, this.ground.n_writes)
    cache = this.draw.choice([this.ground.cache, this.place / "cache"])
    this.begin(prepare=Writes().watch(partial(end_at, n)), cache=cache).wait(60)
    before = this.before()
    this.finish(cache=cache)
    this.compare(before)


def killed_with_files_elsewhere(this: Try) -> None:
    """The same with $TMPDIR on another file system, from which nothing can be renamed or linked."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        if os.stat(elsewhere).st_dev == os.stat(this.place).st_dev:
            raise RuntimeError("/dev/shm is not another file system here")
        n, watch = this.draw.randint(1, this.ground.n_writes), Writes()

        def prepare() -> None:
            os.environ["TMPDIR"], tempfile.tempdir = elsewhere, None
            watch.watch(partial(end_at, n))()

        this.begin(prepare=prepare).wait(60)
        before = this.before()
        this.finish()
        this.compare(before)


def killed_worker(this: Try) -> None:
    command = this.begin()
    this.sleep()
    for worker in this.draw.sample(workers := command.workers(), min(1, len(workers))):
        os.kill(worker, signal.SIGKILL)
    this.end(command)
    this.finish()


def killed_parent(this: Try) -> None:
    """SIGKILL of the parent alone; the same command comes while its workers may still be at it."""
    command = this.begin()
    this.sleep()
    os.kill(command.pid, signal.SIGKILL)
    command.wait(10)
    before = this.before()
    this.finish()
    this.compare(before)
    command.signal_group(signal.SIGKILL)


def signal_once(this: Try) -> None:
    number = this.draw.choice([signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
    _signalled(this, [number])


def signal_twice(this: Try) -> None:
    _signalled(this, [this.draw.choice([signal.SIGINT, signal.SIGTERM]), signal.SIGINT])


def _signalled(this: Try, numbers: list[int]) -> None:
    command = this.begin()
    this.sleep()
    for number in numbers:
        command.signal_group(number)
        time.sleep(this.draw.uniform(0.01, 0.3))
    this.end(command, 20)
    before = this.before()
    this.finish()
    this.compare(before)


def at_once(this: Try) -> None:
    """Two to four identical commands; all must end well."""
    commands = []
    for i in range(this.draw.randint(2, 4)):
        commands.append(this.begin(f"log{i}"))
        this.sleep(0.2)
    for command in commands:
        done = this.end(command)
        if done.code != 0:
            this.fail("unfinished", f"one of {len(commands)} at once ended with {done.code}\n{done.text}")
    this.check()


def hung_worker(this: Try) -> None:
    """SIGSTOP of a worker: the command must end it and go on."""
    command = this.begin()
    while not (workers := command.workers()) and command.wait(0.02) is None:
        pass
    this.sleep(0.5)
    for worker in this.draw.sample(workers := command.workers(), min(1, len(workers))):
        os.kill(worker, signal.SIGSTOP)
    this.end(command, 60)
    this.finish()


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
    done = this.finish()
    this.compare(before)
    newest = max(path.parents[1].glob("step-*"), default=path) if path.parent.name.startswith("step-") else None
    if newest == path.parent and not done.says(path.parent):
        this.fail("unclear", f"{path} was damaged, and it is not told\n{done.text}")


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


KINDS: Mapping[str, Callable[[Try], None]] = {
    "F1 SIGKILL of everything, one to three times": killed_whole,
    "F1 SIGKILL of a worker": killed_worker,
    "F2 SIGKILL of the parent alone": killed_parent,
    "F3 SIGKILL of everything at a write": killed_at_a_write,
    "F4 SIGINT, SIGTERM, SIGUSR1 or SIGHUP once": signal_once,
    "F4 SIGINT or SIGTERM, then SIGINT": signal_twice,
    "F7 a write refused (full, quota, read-only, rights, EIO)": refused_write,
    "F7 files limited in size (RLIMIT_FSIZE)": small_files_only,
    "F8 damaged record": damaged_record,
    "F8 damaged plan": damaged_plan,
    "F8 damaged study or tokenizer": damaged_study_file,
    "F8 damaged weights": damaged_weights,
    "F8 damaged checkpoint": damaged_checkpoint,
    "F8 damaged note of a failure": damaged_note,
    "F8 damaged cache": damaged_cache,
    "F8 damaged preset or study given": damaged_input,
    "F10 a worker hangs (SIGSTOP)": hung_worker,
    "F13 two to four identical commands at once": at_once,
    "F14 checkpoints of another program": other_program,
    "F15 SIGKILL at a write, temporary files elsewhere": killed_with_files_elsewhere,
}
DAMAGES = tuple(name for name in KINDS if name.startswith("F8"))


def attempt(ground: Ground, kind: str, number: int, seed: int, *, thorough: bool = True) -> dict[str, Any]:
    """One try of a kind; the same numbers give the same fault. Not `thorough`: what tells it, not the whole repair."""
    place = ground.folder / f"try-{number}"
    place.mkdir()
    this = Try(ground, place, random.Random(f"{seed} {number} {kind}"), thorough)
    KINDS[kind](this)
    shutil.rmtree(place)
    return {"number": number, "kind": kind, "found": dict(this.found), "notes": this.notes}


def table(tries: list[dict[str, Any]]) -> str:
    """The campaign as Markdown: a row for each kind, and their sum."""
    lines = ["| fault | tries | " + " | ".join(COLUMNS) + " |", "|---|" + "--:|" * (len(COLUMNS) + 1)]
    for kind in (*KINDS, "sum"):
        own = [each for each in tries if kind in (each["kind"], "sum")]
        found = sum((Counter(each["found"]) for each in own), Counter[str]())
        cells = (kind, len(own), *(found[column] for column in COLUMNS))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def done_before(path: Path) -> list[dict[str, Any]]:
    """The tries of a campaign that was stopped; half a line at the end is none."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def main() -> None:
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"tries-{arguments.seed}.jsonl"
    tries = done_before(path)
    replace_file(path, "".join(json.dumps(each) + "\n" for each in tries))
    kinds = [name for name in KINDS if not arguments.only or arguments.only in name]
    with tempfile.TemporaryDirectory() as folder:
        ground = Ground(Path(folder))
        ground.make()
        print(f"undisturbed: {ground.seconds:.1f} s, {ground.n_writes} writes", flush=True)
        for number in range(len(tries), arguments.count):
            found = attempt(ground, kinds[number % len(kinds)], number, arguments.seed)
            tries.append(found)
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            if found["found"]:
                print(number, found["kind"], *found["notes"], sep="\n  ", flush=True)
    replace_file(arguments.out / f"table-{arguments.seed}.md", table(tries) + "\n")
    print(table(tries))


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="kinds of fault with this in their name")
    parser.add_argument("--out", type=Path, default=Path("results/faults"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
