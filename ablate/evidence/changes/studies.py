"""Which studies are read: those that are given, or those that are shipped beside the program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ablate.attribution.study.compare import StudyResult, compare
from ablate.components.component import ON
from ablate.components.controls import CONTROLS
from ablate.components.registry import NAMES, component
from ablate.components.variants import Variant
from ablate.presets import names as preset_names
from ablate.presets import preset
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
    earlier: tuple[str, ...] = ()  # components whose text was another one then: their effects answer another question

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
    reference, earlier = plan.variants[0], _earlier(plan.preset, result)
    names = {control.name for control in CONTROLS}
    facts = StudyFacts(
        folder=folder, question=plan.question, preset=plan.preset, match=plan.match, design=plan.design.name,
        parameters=int(reference.cost["total_parameters"]), n_tokens=reference.n_tokens, flops=float(reference.flops),
        confidence=plan.interval_confidence,
        learning_rates=tuple(sorted({v.learning_rate for v in plan.variants})),
        n_planned=plan.n_runs, n_finished=len(finished),
        devices=tuple(sorted({str(record.environment.get("device", "not recorded")) for record in finished})),
        warnings=(*result.warnings, *(f"{name} read another text than it does now" for name in earlier)),
        has_controls=any(names & set(v.levels) for v in plan.variants), earlier=earlier,
    )  # fmt: skip
    return facts, result


def _earlier(preset_name: str, result: StudyResult) -> tuple[str, ...]:
    """Components that give runs another text, and gave these one that the preset no longer reads."""
    if preset_name not in preset_names():
        return ()
    base, found = preset(preset_name), []
    for name in NAMES:
        if "text" not in component(name).owns:
            continue
        now = getattr((Variant.none() | {name: ON}).resolve(base).data.text, "text_hash", None)
        runs = (run.record for v in result.variants if v.planned.levels.get(name) == ON for run in v.finished)
        then = {record.spec.get("text", {}).get("text_hash") for record in runs if record is not None}
        if then - {now, None}:
            found.append(name)
    return tuple(found)


def check_apart(folders: Sequence[Path]) -> None:
    """ValueError where one folder was given twice: its runs would count twice."""
    seen: set[Path] = set()
    for folder in folders:
        if folder.resolve() in seen:
            raise ValueError(f"--study {folder} was given twice; give each study once")
        seen.add(folder.resolve())
