"""The trials of a search: one sealed file a trial, written once, beside the records of its runs.

A search has as many slots as it plans trials. A slot is filled once, with the parameters proposed for it; from then on
the trial exists, whoever proposed it and whatever becomes of that process: its run has a record, or is still to be done
and anybody may do it. So a worker that is killed loses no trial and none is made twice. Claims only keep two
workers from one run; they are locks that the system lets go of when a process ends.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ablate.documents import read_document
from ablate.files import check_names, commit_once, sealed
from ablate.runs.searching import Objective, Value
from ablate.spec.decoding import FORBID_UNKNOWN, decode, encode

CURE = "put it back from a copy, or choose another folder with --out"
LOCK = "lock"  # of an attempt, see ablate.runs.attempts


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One run of a trial: the whole budget, or before it a shorter, decayed one after which it may be pruned."""

    share: float  # of the budget
    run_id: str

    def __post_init__(self) -> None:
        check_names([self.run_id], "the run of a trial")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What was proposed for a slot. Never changed; what became of it is in the records of its runs."""

    slot: str
    group: str  # the variant, or "whole": what shares a sampler
    number: int  # within the group
    variant: str
    levels: Mapping[str, str]
    parameters: Mapping[str, Value]  # path of a preset's field -> value; of the whole search also "variant"
    origin: str  # "sampler", "grid", or whose best settings these are
    stages: tuple[Stage, ...]
    flops_per_token: float  # of training, closed form
    n_steps: int
    flops: int  # of the whole run
    system_attributes: Mapping[str, Any] = field(default_factory=dict)  # what the sampler must find again

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN

    def __post_init__(self) -> None:
        check_names([self.slot], "the slot of a trial")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchPlan:
    """What a search is, but for what all workers may do differently: the file search.json."""

    question: str
    preset: str
    match: str
    budget: float
    seed: int
    corpus_hash: str
    n_trials: int  # of each group
    groups: tuple[str, ...]
    variants: tuple[str, ...]  # the reference first
    objectives: tuple[Objective, ...]
    sampler: str
    pruner: str
    table: Mapping[str, Any]  # [search], without a password

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN

    def slots(self) -> Iterator[tuple[str, str, int]]:
        """Name, group and number of every slot, round by round over the groups."""
        for number in range(self.n_trials):
            for i, group in enumerate(self.groups):
                yield f"{i:03d}-{number:04d}", group, number


@dataclass(frozen=True, slots=True)
class TrialFolder:
    """Where a search keeps its plan, its trials and, as a store, their records."""

    folder: Path

    @property
    def plan_file(self) -> Path:
        return self.folder / "search.json"

    @property
    def trials(self) -> Path:
        return self.folder / "trials"

    def take_plan(self, plan: SearchPlan) -> None:
        """Write the plan, or find it there; ValueError if another search is in the folder."""
        if not commit_once(self.plan_file, sealed(encode(plan)), "the search") and self.plan() != plan:
            raise ValueError(
                f"{self.folder} holds another search ({self.plan().question!r}, or the same with other parameters); "
                "choose another folder with --out"
            )

    def plan(self) -> SearchPlan:
        return decode(SearchPlan, read_document(self.plan_file, "the search", CURE), "search")

    def propose(self, trial: Trial) -> Trial:
        """Fill a slot. Returns the trial that is in it: another worker may have been faster."""
        commit_once(self._file(trial.slot), sealed(encode(trial)), "the trial")
        found = self.read(trial.slot)
        assert found is not None
        return found

    def read(self, slot: str) -> Trial | None:
        path = self._file(slot)
        return decode(Trial, read_document(path, "the trial", CURE), str(path)) if path.exists() else None

    def __iter__(self) -> Iterator[Trial]:
        for path in sorted(self.trials.glob("*.trial.json")):
            found = self.read(path.name.removesuffix(".trial.json"))
            if found is not None:
                yield found

    def prune(self, slot: str, share: float) -> None:
        """Note that a trial ends with its run of this share of the budget."""
        commit_once(self.trials / f"{slot}.pruned.json", sealed({"share": share}), "the note of a pruned trial")

    def pruned(self, slot: str) -> float | None:
        """The share of the budget after which a trial was pruned."""
        path = self.trials / f"{slot}.pruned.json"
        return float(read_document(path, "the note of a pruned trial", CURE)["share"]) if path.exists() else None

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Hold a slot for as long as this lasts; False if another process has it."""
        with held(self.trials / f"{name}.claim") as mine:
            yield mine

    def _file(self, slot: str) -> Path:
        return self.trials / f"{slot}.trial.json"


@contextmanager
def held(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """A lock on a file of its own; where the file system has none it counts as held, so that the work goes on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True


def is_worked_on(attempts: Path) -> bool:
    """Whether a process is at one of a run's attempts, such as one that outlived the worker that started it."""
    return any(_is_locked(lock) for lock in attempts.glob(f"*/{LOCK}"))


def _is_locked(lock: Path) -> bool:
    try:
        with lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
