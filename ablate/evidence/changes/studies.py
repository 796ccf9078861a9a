"""Which studies are read: those that are given, or those that are shipped beside the program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ablate.attribution.study.compare import StudyResult, compare
from ablate.components.controls import CONTROLS
from ablate.runs.plan import read_plan
from ablate.runs.store import Store

SHIPPED = Path(__file__).parents[3] / "reports"


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyFacts:
    """A study of this program's, as far as whoever reads a number of it must know."""

    folder: Path
    question: str
    preset: str
    match: str
    design: str
    parameters: int  # of its reference variant
    n_tokens: int
    flops: float  # of a run
    confidence: float
    learning_rates: tuple[float, ...]
    n_planned: int
    n_finished: int
    devices: tuple[str, ...]
    warnings: tuple[str, ...]
    has_controls: bool  # it checks the method, and says nothing of the recipe

    @property
    def name(self) -> str:
        return self.folder.name


def shipped_studies() -> tuple[Path, ...]:
    """Folders of reports/ that hold a study; none in an installation without them."""
    return tuple(sorted(path.parent for path in SHIPPED.glob("*/plan.json")))


def read_study(folder: Path) -> tuple[StudyFacts, StudyResult]:
    """What a study's folder holds. ValueError if it holds none, a file is torn, or no run has finished."""
    store = Store(folder)
    if not store.plan_file.is_file():
        raise ValueError(
            f"{folder} holds no study (it has no {store.plan_file.name}); give --study the folder that a study wrote"
        )
    plan = read_plan(store.plan_file)
    result = compare(plan, list(store), store.failures())
    finished = [run.record for v in result.variants for run in v.finished if run.record is not None]
    if not finished:
        raise ValueError(f"no run of the study in {folder} has finished; run it, then give it with --study")
    reference = plan.variants[0]
    names = {control.name for control in CONTROLS}
    facts = StudyFacts(
        folder=folder, question=plan.question, preset=plan.preset, match=plan.match, design=plan.design.name,
        parameters=int(reference.cost["total_parameters"]), n_tokens=reference.n_tokens, flops=float(reference.flops),
        confidence=plan.interval_confidence,
        learning_rates=tuple(sorted({v.learning_rate for v in plan.variants})),
        n_planned=plan.n_runs, n_finished=len(finished),
        devices=tuple(sorted({str(record.environment.get("device", "not recorded")) for record in finished})),
        warnings=result.warnings,
        has_controls=any(names & set(v.levels) for v in plan.variants),
    )  # fmt: skip
    return facts, result


def check_apart(folders: Sequence[Path]) -> None:
    """ValueError where one folder was given twice: its runs would count twice."""
    seen: set[Path] = set()
    for folder in folders:
        if folder.resolve() in seen:
            raise ValueError(f"--study {folder} was given twice; give each study once")
        seen.add(folder.resolve())
