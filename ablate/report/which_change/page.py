"""What the page of which change mattered says: one value of texts and tables, made from the answer's content."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ablate.evidence.changes.content import AnswerContent
from ablate.evidence.changes.document import document
from ablate.evidence.changes.reported import rule
from ablate.evidence.changes.sentences import sentences
from ablate.evidence.changes.studies import SHIPPED, StudyFacts, shipped_studies
from ablate.quantities import between, listed, number, percent, plural, scaled, short
from ablate.report.cleaning import clean
from ablate.report.facts import Fact
from ablate.report.tables.table import Columns, Table, text
from ablate.report.which_change.links import Linked, make_linked, towards
from ablate.report.which_change.overview import compact, overview
from ablate.report.which_change.tables import (
    equality_table,
    exact_table,
    further_table,
    measured_table,
    published_tables,
    simulated_table,
    trend_table,
)

TITLE = "Which changes made DeepSeek-V3 faster and better?"
SECTIONS = (
    ("table", "Each change"),
    ("cost", "Cost"),
    ("exact", "Exact"),
    ("simulated", "Simulated"),
    ("measured", "Measured"),
    ("published", "Published"),
    ("limits", "Limits"),
    ("repeat", "Repeat"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """The page. Texts are plain, and whoever renders them escapes them; cells that lead somewhere are `Linked`."""

    title: str
    scale: str
    sentences: tuple[str, ...]
    overview: Table
    compact: Table
    figure_caption: str
    figure_alt: str
    cost: Table
    exact: Table
    further: Table
    simulated: Table
    believe_simulation: tuple[str, ...]
    measured: Table
    trends: Table
    studies: Table
    equality: Table
    published: tuple[Table, ...]
    rule: str
    limits: tuple[str, ...]
    checks: tuple[Fact, ...]  # where a reader who does not believe a kind of evidence goes; values may be Linked
    repeat: tuple[str, ...]
    document: dict[str, object]


def page(content: AnswerContent, out: Path) -> Page:
    """The page with links as seen from the folder `out`."""
    return Page(
        title=TITLE,
        scale=_scale(content),
        sentences=sentences(content),
        overview=overview(content),
        compact=compact(content),
        figure_caption=_caption(content),
        figure_alt="Three panels with a row for each change: exact multiples, simulated speed, measured saving in "
        "tokens; the table has the same numbers.",
        cost=_cost(content),
        exact=exact_table(content),
        further=further_table(content),
        simulated=simulated_table(content),
        believe_simulation=tuple(_believe(content)),
        measured=measured_table(content, out),
        trends=trend_table(content),
        studies=_studies(content, out),
        equality=equality_table(content, out),
        published=published_tables(content),
        rule=rule(),
        limits=tuple(_limits(content)),
        checks=tuple(_checks(content, out)),
        repeat=_repeat(content, out),
        document=document(content, out),
    )


def _scale(content: AnswerContent) -> str:
    sizes = sorted({study.parameters for study in content.studies})
    measured = (
        f"{plural(sum(s.n_finished for s in content.studies), 'run')} of {_n_studies(len(content.studies))} at "
        f"{listed(scaled(size) for size in sizes)} parameters"
        if sizes
        else "no runs"
    )
    n = sum(len(change.reported.findings) for change in content.changes)
    return (
        f"{clean(content.preset_title)} on {content.speeds.cluster_title}, {measured}, {plural(n, 'published finding')}"
    )


def _n_studies(n: int) -> str:
    return "1 study" if n == 1 else f"{n} studies"


def _caption(content: AnswerContent) -> str:
    """What to see, in one sentence, and how it is drawn."""
    return (
        f"Left: exact multiples at the size of {content.preset}, as savings (dot: FLOPs per token; square: KV bytes a "
        "token; triangle up: FLOPs per token against a dense model of as many parameters; triangle down: bytes of a "
        "token sent between nodes). Middle, hollow because it is simulated: tokens a second with 5 to 95 % of the "
        "inputs' ranges. Right: tokens saved for the same loss, measured here, with 95 % intervals; larger marks are "
        "larger sizes. Green gains, red-brown harms, grey not resolved, blue no effect within 2 %."
    )


def _cost(content: AnswerContent) -> Table:
    """FLOPs per token, step by step, from the dense model with published totals to this one."""
    columns: Columns = [text("Step"), "FLOPs per token", "Times fewer than the step before"]
    if content.cost is None:
        return make_linked("", columns, [])
    rows = [[step["step"], scaled(step["flops_per_token"], "FLOP"), f"{number(step['factor'], 3)}×"]
            for step in content.cost.path]  # fmt: skip
    whole = content.cost.identity["gpu_hours_ratio"]
    factors = content.cost.identity["factors"]
    title = f"FLOPs per token, from {content.cost.first} to {content.cost.second}, exact"
    note = (
        f"GPU hours: {content.cost.first_title}, over {content.cost.second_title}, is {number(whole['estimate'], 2)} "
        f"({between(whole['low'], whole['high'], 2)} by rounding of what is published). FLOP/s of a GPU, "
        f"{number(factors['flops_per_s']['estimate'], 2)}×, are what remains; dsv3-ablate answer --gap splits them."
    )
    return make_linked(title, columns, rows, note)


def _believe(content: AnswerContent) -> Iterator[str]:
    """What the simulated step is beside the published one, where there is one."""
    step = content.speeds.step
    if content.speeds.reason:
        yield f"Not simulated: {content.speeds.reason}."
    if step is None:
        return
    said = f"The whole recipe's step takes {number(step.seconds, 1)} s ({between(step.low, step.high, 1)}), simulated"
    if step.published_s is None:
        yield f"{said}; none is published of this model on this cluster."
        return
    far = percent(abs(step.seconds / step.published_s - 1), 2)
    yield (
        f"{said}; the published step is {number(step.published_s, 1)} s ({step.source}): the simulation is {far} "
        f"{'longer' if step.published_s < step.seconds else 'shorter'}. "
        "No factor was fitted to it; the rates of kernels are those of the trace that DeepSeek published."
    )


def _studies(content: AnswerContent, out: Path) -> Table:
    columns: Columns = [text("Study"), text("Question"), text("Preset"), "Parameters", "Tokens a run", "FLOP a run",
                        text("Equal"), "Runs finished", text("Learning rate"), text("Device"), text("Records"),
                        text("Read with care")]  # fmt: skip
    rows = [_study(study, out) for study in (*content.studies, *content.silent, *content.calibrations)]
    note = "Each report says what was held equal, which runs were lost, and how to repeat it; a record is one run."
    return make_linked("Studies that are read here", columns, rows, note if rows else "")


def _study(study: StudyFacts, out: Path) -> list[str]:
    page_file = study.folder / "report.md"
    shown = page_file if page_file.is_file() else study.folder
    rates = study.learning_rates
    rate = f"{short(rates[0])} for all" if len(rates) == 1 else "each variant's own"
    care = "; ".join((*(["controls: checks the method"] if study.has_controls else []), *study.warnings))
    runs = f"{study.n_finished} of {study.n_planned}"
    return [Linked(study.name, towards(shown, out)), study.question, study.preset, scaled(study.parameters),
            scaled(study.n_tokens), scaled(study.flops, "FLOP"), study.match, runs, rate, listed(study.devices),
            Linked("records", towards(study.folder / "records", out)), care]  # fmt: skip


def _limits(content: AnswerContent) -> Iterator[str]:
    """What this does not show, the largest first."""
    yield content_reach(content)
    for study in content.silent:
        yield f"{clean(study.name)} gives no effect yet: {study.n_finished} of its {study.n_planned} runs are finished."
    if any(len(study.learning_rates) == 1 for study in content.studies):
        yield "In the studies with one learning rate for all variants, part of an effect may be the rate's."
    yield (
        "Measured is held-out language-model loss of the main head. What a change does for benchmarks, for generation, "
        "for long contexts or for stability over trillions of tokens is not measured."
    )
    yield (
        "Exact figures say what a change costs or saves in arithmetic and bytes, and nothing of quality: moe off is "
        "a dense feed-forward of equal activated FLOPs, and whether that learns as much is the measured column's."
    )
    yield "Simulated seconds rest on assumptions, each with its range; dsv3-ablate simulate --json lists them all."
    yield "Published effects are mostly of single runs without error bars, at other sizes, data and baselines."


def content_reach(content: AnswerContent) -> str:
    """The last sentence of the answer, which is its largest limit too."""
    return sentences(content)[-1]


def _checks(content: AnswerContent, out: Path) -> Iterator[Fact]:
    """A line a kind of evidence: what to run or read."""
    yield Fact(label="Exact", value=f"dsv3-ablate account --preset {content.preset} --disable mla")
    cluster = content.speeds.cluster
    yield Fact(
        label="Simulated", value=f"dsv3-ablate simulate --cluster {cluster} --preset {content.preset} --attribute"
    )
    for study in content.studies:
        yield Fact(label=f"Measured: {study.name}", value=Linked("its records", towards(study.folder / "records", out)))
    for study in content.calibrations:
        label = "Are known effects found again?"
        yield Fact(label=label, value=Linked(study.name, towards(study.folder / "report.md", out)))
    coverage = SHIPPED / "attribution" / "coverage.md"
    if coverage.is_file():
        label = "Do the intervals hold the truth?"
        yield Fact(label=label, value=Linked("coverage, by simulation", towards(coverage, out)))
    yield Fact(label="Published", value="dsv3-ablate evidence")


def _repeat(content: AnswerContent, out: Path) -> tuple[str, ...]:
    read = [study.folder for study in (*content.studies, *content.silent, *content.calibrations)]
    shipped = {folder.resolve() for folder in read} == {folder.resolve() for folder in shipped_studies()}
    given = "" if shipped else "".join(f" --study {_in_checkout(folder)}" for folder in read)
    chosen = f"--preset {content.preset} --cluster {content.speeds.cluster}"
    return (f"dsv3-ablate answer {chosen}{given} --out {_in_checkout(out)}",)


def _in_checkout(path: Path) -> str:
    """A folder as seen from the checkout; of one elsewhere its name alone, since where it lies is the machine's own."""
    checkout, whole = SHIPPED.parent.resolve(), path.resolve()
    return whole.relative_to(checkout).as_posix() if whole.is_relative_to(checkout) else path.name
