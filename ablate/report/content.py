"""Everything that a report says, as one value made from a study's folder alone. The renderers only lay it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ablate.attribution.study.compare import StudyResult, compare
from ablate.attribution.study.ladder import Ladder
from ablate.attribution.study.primary import primary
from ablate.report.answer import answer, diverged
from ablate.report.cleaning import clean
from ablate.report.curves import Curve, Gap, curves, gaps
from ablate.report.facts import Fact, held_equal, provenance
from ablate.report.interplay import Interplay, interplay
from ablate.report.limits import limits
from ablate.report.notes import effect_notes, equality_notes, scale, speed_notes, unfinished
from ablate.report.repeat import citation, commands, links, values
from ablate.report.tables.at_size import DEFAULT_SIZE, at_size
from ablate.report.tables.beside import beside
from ablate.report.tables.budget import missed_budget
from ablate.report.tables.calibration import calibration
from ablate.report.tables.effects import effects, interactions, noise, other_sets, ranks
from ablate.report.tables.factors import responses
from ablate.report.tables.gain import InCompute, in_compute
from ablate.report.tables.ladder import ladder_sentence, ladder_table, study_ladders, trend_table
from ablate.report.tables.looks import any_time, looks_made, of_history, plans_made
from ablate.report.tables.metrics import other_metrics, routing
from ablate.report.tables.primary import asked, primary_sentence, primary_table
from ablate.report.tables.runs import curve_points, lost_runs, runs, sizes, variants
from ablate.report.tables.search import SearchSection, search, winner
from ablate.report.tables.speed import speed, speed_ratios
from ablate.report.tables.table import Table
from ablate.report.tables.timeline import Recorded, bubbles, notes, recorded, seconds
from ablate.report.tables.tuning import TuningSection, tuning
from ablate.report.tiles import Tile, tiles
from ablate.report.watched import LoadMap, Watched, load_maps, watched
from ablate.report.waterfall import Waterfall, waterfall, who_can
from ablate.report.why_faster import Factors, of_study, published
from ablate.runs.history import Entry, History
from ablate.runs.plan import Plan, read_plan
from ablate.runs.store import Store

MAX_STUDY = 20_000  # characters of the study's file that are shown


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportContent:
    """What a report says. Its texts are plain, and whoever renders them escapes them."""

    folder: Path
    question: str
    scale: str  # one line: which study this is
    complete: bool  # every planned run has a record
    asked: tuple[Fact, ...]  # what was stated before the first run
    answer: tuple[str, ...]  # sentences: what diverged, the headline in compute, the loss, its price, the caveat
    result: StudyResult
    tiles: tuple[Tile, ...]
    variants: Table
    effects: Table
    other_sets: Table  # effects on further held-out sets
    effect_notes: tuple[str, ...]
    compute: InCompute
    waterfall: Waterfall | None
    no_waterfall: str  # the study file that gives one, where this study cannot
    interplay: Interplay | None
    factors: tuple[Factors, ...]  # tokens, FLOPs per token, FLOP/s of what the study compares
    published_factors: tuple[Factors, ...]
    beside: Table
    primary: Table  # where it is not the loss
    responses: tuple[Table, ...]  # to factors
    ladders: tuple[Ladder, ...]
    ladder: Table
    ladder_trends: Table
    at_size: Table
    calibration: Table
    looks: Table
    plans: Table
    any_time: Table
    history: tuple[Entry, ...]
    tuning: TuningSection | None
    search: SearchSection | None
    ranks: Table
    interactions: Table
    noise: Table
    speed: Table
    speed_ratios: Table
    speed_notes: tuple[str, ...]
    timelines: tuple[Recorded, ...]  # of variants whose ranks were recorded
    timeline_notes: tuple[str, ...]
    bubbles: Table
    action_seconds: Table
    sizes: Table
    routing: Table
    other_metrics: Table
    curves: tuple[Curve, ...]
    gaps: tuple[Gap, ...]
    watched: tuple[Watched, ...]  # what is measured beside the loss, over the training
    loads: tuple[LoadMap, ...]  # of experts, at the end
    curve_table: Table
    held_equal: tuple[Fact, ...]
    provenance: tuple[Fact, ...]
    runs: Table
    lost_runs: Table
    limits: tuple[str, ...]
    warnings: tuple[str, ...]
    repeat: tuple[str, ...]  # commands
    paste: tuple[str, ...]  # a line for each value with its error
    citation: str  # BibTeX
    links: Mapping[str, str]  # run -> its record, beside the report
    study_file: str


def build(folder: Path, size: str = DEFAULT_SIZE) -> ReportContent:
    """The report of the study in a folder. ValueError if it holds none, a file is torn, or no run has ended.

    `size`: the preset at whose size the FLOPs per token of each component are set beside this study's.
    """
    store = Store(folder)
    result = compare(_plan(store), list(store), store.failures())
    _require_an_end(result, folder)
    lines, entries, searched = curves(result), History(folder).entries(), search(folder, result)
    compute = in_compute(result)
    stated, study_file = primary(result, compute.gains), _study_file(store)
    steps, factors = waterfall(result, compute.cost), of_study(compute, result)
    sizes_of, ranks_did = study_ladders(result, compute.gains), recorded(store, result)
    first = (*primary_sentence(stated, result, compute.why), ladder_sentence(sizes_of, result))
    return ReportContent(
        folder=folder,
        question=clean(result.plan.question) or "What is each component worth?",
        scale=scale(result),
        complete=all(run.record is not None and run.status != "failed" for run in result.runs),
        asked=asked(result, store.study_file),
        answer=_sentences(result, first, "" if sizes_of else compute.headline, searched),
        result=result,
        tiles=tiles(result, steps),
        variants=variants(result),
        effects=effects(result),
        other_sets=other_sets(result),
        looks=looks_made(result, entries),
        plans=plans_made(entries),
        any_time=any_time(result, entries),
        history=entries,
        ranks=ranks(result),
        interactions=interactions(result),
        noise=noise(result),
        effect_notes=_notes(result, compute),
        compute=compute,
        waterfall=steps,
        no_waterfall="" if steps else who_can(result),
        interplay=interplay(result),
        factors=factors,
        published_factors=published() if factors else (),
        beside=beside(result),
        primary=primary_table(stated, result),
        responses=responses(result),
        ladders=sizes_of,
        ladder=ladder_table(sizes_of, result),
        ladder_trends=trend_table(sizes_of, result),
        at_size=at_size(result, compute.gains, size),
        calibration=calibration(result, compute.cost),
        tuning=tuning(folder, result),
        search=searched,
        speed=speed(result),
        speed_ratios=speed_ratios(result),
        speed_notes=(*speed_notes(result), *equality_notes(folder)),
        timelines=ranks_did,
        timeline_notes=tuple(notes(ranks_did)),
        bubbles=bubbles(ranks_did),
        action_seconds=seconds(ranks_did),
        sizes=sizes(result),
        routing=routing(result),
        other_metrics=other_metrics(result),
        curves=lines,
        gaps=gaps(result),
        watched=watched(result),
        loads=load_maps(result),
        curve_table=curve_points(lines),
        held_equal=held_equal(result),
        provenance=provenance(result),
        runs=runs(result),
        lost_runs=lost_runs(result),
        limits=tuple(limits(result)),
        warnings=_warnings(result, entries),
        repeat=commands(
            result,
            study_file if len(study_file) < MAX_STUDY else "",
            max((len(each.timeline.steps) for each in ranks_did), default=0),
        ),
        paste=tuple(values(result, steps)),
        citation=citation(result),
        links=links(result),
        study_file=study_file,
    )


def _sentences(
    result: StudyResult, first: Sequence[str], headline: str, searched: SearchSection | None
) -> tuple[str, ...]:
    """The answer, without empty sentences; `first`: what stands before the headline in compute."""
    found = (winner(searched, result) if searched else ()) or answer(result)
    return tuple(filter(None, (diverged(result), *first, headline, *found)))


def _notes(result: StudyResult, compute: InCompute) -> tuple[str, ...]:
    """How effects are read, and why there is no cost in compute where there is none."""
    why = [f"No cost in compute is given: {clean(compute.why)}."] if compute.why else []
    return (*effect_notes(result), *why)


def _warnings(result: StudyResult, entries: tuple[Entry, ...]) -> tuple[str, ...]:
    """What is to be known before the results are read."""
    found = (*unfinished(result), *of_history(result, entries), *missed_budget(result), *result.warnings)
    return tuple(map(clean, found))


def _require_an_end(result: StudyResult, folder: Path) -> None:
    if any(run.status in ("finished", "diverged") for run in result.runs):
        return
    failed = [run for run in result.runs if run.status == "failed"]
    why = f"; {len(failed)} failed, the first because {clean(failed[0].reason)}" if failed else ""
    raise ValueError(f"no run of the study in {folder} has finished{why}; run it, then ask for the report")


def _plan(store: Store) -> Plan:
    if not store.plan_file.is_file():
        raise ValueError(
            f"{store.folder} holds no study (it has no {store.plan_file.name}); give the folder that a study wrote"
        )
    return read_plan(store.plan_file)


def _study_file(store: Store) -> str:
    """The study's own file without control characters; empty where it is not there, since a report can do without."""
    try:
        text = store.study_file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    kept = "".join(c if c >= " " or c == "\n" else " " for c in text.replace("\r\n", "\n"))
    return kept.strip()[:MAX_STUDY]
