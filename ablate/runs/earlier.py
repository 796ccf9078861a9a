"""Runs that go on from another study's checkpoints: those of the same runs on other ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablate.documents import read_sealed_document
from ablate.runs.job import Job
from ablate.spec.decoding import canonical, encode

# Fields of the trainer that say where and how a step is computed, and not what.
LAYOUT = ("ranks", "pipeline", "transport", "micro_batch_size", "recompute", "zero_stage")
CURE = "name the folder of a study that was begun with --ranks, or without them"


def with_checkpoints_of(jobs: Iterable[Job], study: Path) -> list[Job]:
    """The jobs, each with the attempts of the run in `study` that differs from it in its ranks alone, if there is one.

    ValueError if none of them has one.
    """
    known: dict[str, Path] = {}
    for path in sorted((study / "runs").glob("*/job.json")):
        known[_whatever_the_ranks(read_sealed_document(path, "what a run was given to do", CURE)["run"])] = path.parent
    found = []
    for job in jobs:
        folder = known.get(_whatever_the_ranks(encode(job.run)))
        found.append(job if folder is None else replace(job, earlier=str((folder / "attempts").absolute())))
    if not any(job.earlier for job in found):
        raise ValueError(
            f"--checkpoints is {study}, which has no run that differs from these in its ranks alone; {CURE}, and give "
            "everything else as it was given there"
        )
    return found


def _whatever_the_ranks(run: Mapping[str, Any]) -> str:
    trainer = {name: value for name, value in run["trainer"].items() if name not in LAYOUT}
    return str(canonical({**run, "trainer": trainer}))
