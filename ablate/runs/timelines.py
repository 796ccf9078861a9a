"""The file of a run's timeline: sealed, beside the record; a rank's spans of a step are one line of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

from ablate.documents import read_sealed_document
from ablate.files import commit_once, sealed
from ablate.schedules.timeline import Step, Timeline, read_span
from ablate.spec.decoding import FORBID_UNKNOWN, decode
from ablate.spec.ranges import Count

WHAT, CURE = "the timeline", "move it away: runs and reports do without"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    number: int
    ranks: tuple[str, ...]  # spans, joined by a comma

    __pydantic_config__: ClassVar = FORBID_UNKNOWN


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    run_id: str
    n_data_ranks: Count
    clock: Literal["host", "device"]
    clock_error_s: float
    n_cores: Count
    load: float
    steps: tuple[_Step, ...]

    __pydantic_config__: ClassVar = FORBID_UNKNOWN


def write_timeline(path: Path, timeline: Timeline) -> bool:
    """Put the timeline there if none is; False if there was one, which is then kept."""
    steps = tuple(_Step(number=s.number, ranks=tuple(", ".join(map(str, r)) for r in s.ranks)) for s in timeline.steps)
    file = _File(
        run_id=timeline.run_id, n_data_ranks=timeline.n_data_ranks, clock=timeline.clock,
        clock_error_s=timeline.clock_error_s, n_cores=timeline.n_cores,
        load=timeline.load, steps=steps,
    )  # fmt: skip
    return commit_once(path, sealed(asdict(file)), WHAT)


def read_timeline(path: Path) -> Timeline:
    """ValueError if the file is torn, altered, or not of the run that its name says."""
    file = decode(_File, read_sealed_document(path, WHAT, CURE), str(path))
    sizes = {len(step.ranks) for step in file.steps}
    if path.stem != file.run_id:
        raise ValueError(f"{WHAT} {path} is that of run {file.run_id}; give it back its name")
    if len(sizes) != 1 or min(sizes) == 0 or min(sizes) % file.n_data_ranks:
        raise ValueError(f"{WHAT} {path} has not the same ranks in every step; {CURE}")
    return Timeline(
        run_id=file.run_id, n_data_ranks=file.n_data_ranks, clock=file.clock,
        clock_error_s=file.clock_error_s, n_cores=file.n_cores, load=file.load,
        steps=tuple(Step(number=s.number, ranks=_spans(s.ranks, path)) for s in file.steps),
    )  # fmt: skip


def _spans(ranks: Sequence[str], path: Path) -> tuple:
    try:
        return tuple(tuple(map(read_span, line.split(", "))) for line in ranks)
    except ValueError as error:
        raise ValueError(f"cannot read {WHAT} {path}: {error}; {CURE}") from None
