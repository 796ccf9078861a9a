"""Faults injected into the real command line: is a run ever lost, duplicated, torn or wrong, and is every fault told?

    python benchmarks/faults.py --n 20 --seed 1 --out results/faults
    python benchmarks/faults.py --executor slurm --n 3 --seed 1 --out results/faults
    python benchmarks/faults.py --only F5,F9,S --out results/faults

Each try is a small study (two variants, two seeds, preset nano) that is killed, interrupted, refused the disk or
memory, started several times at once, or whose files are damaged; then the same command is given again. Counted are

- lost: a committed record that changed or went, or a run without one at the end;
- duplicated: a record that the undisturbed study has not;
- torn: a record, plan, study, tokenizer or folder of weights that is not whole at the end, or a file left unfinished;
- wrong: a record whose curve, data order, initial values or final weights are not bit for bit the undisturbed ones;
- unfinished: the same command (after what its message asked for) does not end well;
- unclear: a traceback, or an end without a sentence that says what and where.

A kind of fault begins with its letter and number in the matrix of faults (`fault_kinds.py`; F faults, R1 resumed runs,
S attacks, which succeed where a try is wrong). `--n` is the most tries of each number; without it there are as many as
the matrix asks for. `met` are the tries in which something was going on that the fault could hit, `cases` what the
tries stand for. `--executor slurm` disturbs the same study through a real Slurm on loopback (`fault_slurm.py`).

Every try is written as it ends (tries-EXECUTOR-SEED.jsonl), and a campaign that was stopped goes on with the same
command. README.md in `--out` has the tables of all campaigns there. How the commands differ from those of a user:
`forked.py`. Attacks need root for nothing; the kinds with a disk of their own, and Slurm, do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fault_ground import Ground, Try
from fault_kinds import DAMAGES, KINDS, Act, label, tries

from ablate.files import replace_file

__all__ = ["DAMAGES", "KINDS", "Ground"]

COLUMNS = ("lost", "duplicated", "torn", "wrong", "unfinished", "unclear")
MAX_NOTE = 3000  # characters of a note that are kept


def attempt(
    ground: Ground, kind: str, index: int, seed: int, *, thorough: bool = True, kinds: Mapping[str, Act] = KINDS
) -> dict[str, Any]:
    """One try of a kind; the same numbers give the same fault. Not `thorough`: what tells it, not the whole repair."""
    place = ground.folder / f"try-{list(kinds).index(kind)}-{index}"
    place.mkdir()
    begun, cpu_s = time.monotonic(), _cpu_s()
    this = Try(ground, place, random.Random(f"{seed} {index} {kind}"), thorough, index)
    try:
        kinds[kind](this)
    except Exception as error:  # the campaign goes on, and the try counts as one that found something
        this.fail("unclear", f"the try itself failed: {type(error).__name__}: {error}")
    shutil.rmtree(place, ignore_errors=True)
    return {
        "kind": kind,
        "index": index,
        "seed": seed,
        "met": this.met,
        "cases": this.cases,
        "found": dict(this.found),
        "notes": [note[:MAX_NOTE] for note in this.notes] if this.found else [],
        "seconds": round(time.monotonic() - begun, 1),
        "cpu_s": round(_cpu_s() - cpu_s, 1),
    }


def _cpu_s() -> float:
    """Of this process and of those that it has waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The campaign as Markdown: a row for each kind that was tried, and their sum."""
    heads = ("tries", "met", "cases", *COLUMNS)
    lines = ["| fault | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    kinds = sorted({each["kind"] for each in found}, key=_order)
    for kind in (*kinds, "sum"):
        own = [each for each in found if kind in (each["kind"], "sum")]
        counted = sum((Counter(each["found"]) for each in own), Counter[str]())
        met, cases = sum(each["met"] for each in own), sum(each["cases"] for each in own)
        lines.append("| " + " | ".join(map(str, (kind, len(own), met, cases, *(counted[c] for c in COLUMNS)))) + " |")
    return "\n".join(lines)


def _order(kind: str) -> tuple[str, int, str]:
    return kind[0], int(label(kind)[1:]), kind


def done_before(path: Path) -> list[dict[str, Any]]:
    """The tries of a campaign that was stopped; half a line at the end is none."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def campaign(ground: Ground, kinds: Mapping[str, Act], numbers: Mapping[str, int], seed: int, path: Path) -> None:
    """All tries that have no line yet, the kinds in turn, so that one that is stopped has some of each."""
    known = done_before(path)
    replace_file(path, "".join(json.dumps(each) + "\n" for each in known))
    there = {(each["kind"], each["index"]) for each in known}
    for index in range(max(numbers.values(), default=0)):
        for kind in kinds:
            if index >= numbers[kind] or (kind, index) in there:
                continue
            found = attempt(ground, kind, index, seed, kinds=kinds)
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            if found["found"]:
                print(index, kind, *found["notes"], sep="\n  ", flush=True)


def report(out: Path) -> str:
    """The tables of every campaign in a folder, from what their tries left."""
    import torch

    lines = [
        "# Faults injected into the real command line",
        "",
        f"`python benchmarks/faults.py`, options below; {time.strftime('%Y-%m-%d', time.gmtime())}, {os.cpu_count()} "
        f"cores, {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}. What is counted, "
        "and how the commands differ from those of a user, is said in `benchmarks/faults.py` and "
        "`benchmarks/forked.py`. With no failure in N tries, the rate of failures is below 3/N at 95 %.",
    ]
    for path in sorted(out.glob("tries-*.jsonl")):
        executor, _, seed = path.stem.removeprefix("tries-").partition("-")
        found = done_before(path)
        if not found:
            continue
        bad = sum(bool(each["found"]) for each in found)
        wall_s, cpu_s = (sum(each[name] for each in found) for name in ("seconds", "cpu_s"))
        lines += [
            "",
            f"## `--executor {executor} --seed {seed}`",
            "",
            f"{len(found)} tries, {bad} of them found something. A try took {wall_s / len(found):.0f} s, of which "
            f"{cpu_s / len(found):.1f} s of a processor: the machine was as busy as that says.",
            "",
            table(found),
        ]
        lines += [line for each in found if each["found"] for line in _told(each)]
    return "\n".join(lines) + "\n"


def _told(each: Mapping[str, Any]) -> list[str]:
    first = " ".join(each["notes"][0].split())[:300] if each["notes"] else ""
    return ["", f"- {each['kind']}, try {each['index']}: {dict(each['found'])}: `{first.replace('`', '')}`"]


def main() -> None:
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.tables:
        replace_file(arguments.out / "README.md", report(arguments.out))
        return
    kinds, ground_type = dict(KINDS), Ground
    if arguments.executor == "slurm":
        from fault_slurm import SLURM_KINDS, SlurmGround

        kinds, ground_type = dict(SLURM_KINDS), SlurmGround
    wanted = [word for word in arguments.only.split(",") if word]
    kinds = {kind: act for kind, act in kinds.items() if not wanted or any(_is(kind, word) for word in wanted)}
    if not kinds:
        sys.exit(f"no kind of fault is {arguments.only}; there are: {', '.join(KINDS)}")
    path = arguments.out / f"tries-{arguments.executor}-{arguments.seed}.jsonl"
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        Path(folder).chmod(0o755)
        ground = ground_type(Path(folder))
        try:
            ground.make()
            print(f"undisturbed: {ground.seconds:.1f} s, {ground.n_writes} writes", flush=True)
            campaign(ground, kinds, tries(kinds, arguments.n), arguments.seed, path)
        finally:
            ground.close()
    replace_file(arguments.out / "README.md", report(arguments.out))
    print(table(done_before(path)))
    if any(each["found"] for each in done_before(path)):
        sys.exit(1)


def _is(kind: str, word: str) -> bool:
    return label(kind) == word or (word.isalpha() and kind.startswith(word)) or (" " in word and word in kind)


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executor", choices=["local", "slurm"], default="local")
    parser.add_argument("--n", type=int, help="most tries of each number of the matrix; default: all it asks for")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="numbers (F5,F9), letters (S), or words of a kind's name")
    parser.add_argument("--out", type=Path, default=Path("results/faults"))
    parser.add_argument("--tables", action="store_true", help="write README.md anew from what is there")
    parser.add_argument("--work", type=Path, help="where tries are made; default: the system's temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
