"""The report for people at a terminal: small tables and the answer, within 100 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ablate.attribution.study.compare import LOSS, SPEED, Comparison, VariantResult
from ablate.attribution.verdicts import GAIN, HARM, NO_EFFECT
from ablate.quantities import number, scaled, signed, signed_between, whole
from ablate.report import two
from ablate.report.cleaning import clean
from ablate.report.content import ReportContent
from ablate.report.fitting import Fitting
from ablate.report.names import confidence, emulated, label, verdict_said
from ablate.report.tables.effects import further_runs, pair_run_s
from ablate.report.tables.speed import kv_bytes, peak_memory, ratio
from ablate.report.tables.table import Table as TextTable

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.text import Text

STYLES = {GAIN: "green", HARM: "red", NO_EFFECT: "cyan"}


def render(content: ReportContent, reports: Sequence[Path] = ()) -> Group:
    """What `run` and `report` print at their end, with the paths of the files that were written."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(content.question, style="bold"), Text(content.scale, style="dim"), Text()]
    parts += [_variants(content)]
    if content.result.comparisons:
        parts.append(_effects(content))
    elif content.effects.rows:
        parts.append(_attributed(content.effects))
    parts += [_attributed(table) for table in (content.ranks,) if table.rows]
    parts += [_attributed(table) for table in (content.looks, content.any_time) if table.rows]
    if content.timelines:
        parts.append(_attributed(content.bubbles))
    if any(map(emulated, content.result.variants)):
        parts.append(Text(content.speed_notes[0], style="dim"))
    lost = content.lost_runs.rows
    said = "; ".join(f"{row[0]} seed {row[1]} {row[2]}: {row[3]}" for row in lost) if lost else "none"
    parts.append(Text(f"Failed, diverged and missing runs: {said}", style="yellow" if lost else "dim"))
    parts += [Text(f"Warning: {warning}", style="yellow") for warning in content.warnings]
    parts += [Text(), Text(" ".join(content.answer), style="bold")]
    parts += [Text(f"Report: {clean(path)}", overflow="fold") for path in reports]
    return Group(*parts)


def of_two(first: ReportContent, second: ReportContent) -> Group:
    """What `report DIR DIR` prints: a row for each component that both studies have."""
    from rich.console import Group
    from rich.text import Text

    names = first.folder.resolve().name, second.folder.resolve().name
    plan = first.result.plan
    found = two.table(two.both(first.result, second.result), names, plan.interval_confidence)
    heads = (f"First:  {clean(names[0])}: {first.question}", f"Second: {clean(names[1])}: {second.question}")
    parts: list[RenderableType] = [Text(line, style="dim", overflow="fold") for line in heads]
    parts += [
        Text(),
        Fitting(found.title, [c.label for c in found.columns], found.rows, 1),
        Text(found.note, style="dim"),
    ]
    parts += [Text(), *(Text(line, style="bold") for line in two.sentences(first, second))]
    return Group(*parts)


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str | Text]], n_texts: int = 1) -> Fitting:
    """Columns of text first, then numbers. On a narrow terminal the last ones are left out, before words are broken."""
    return Fitting(title, heads, rows, n_texts)


def _attributed(found: TextTable) -> Fitting:
    n_texts = sum(not column.numeric for column in found.columns)
    return _table(found.title, [column.label for column in found.columns], found.rows, n_texts)


def _variants(content: ReportContent) -> Fitting:
    heads = ("Variant", "nats/token", f"± ({confidence(content.result)})", "seeds", "tokens/s", "FLOP/token", "memory",
             "KV/token")  # fmt: skip
    table = _table("Variants", heads, map(_variant, content.result.variants))
    if any(map(emulated, content.result.variants)):
        table.caption = "* emulated speed"
    return table


def _variant(v: VariantResult) -> tuple[str, ...]:
    loss, speed = v.metrics.get(LOSS), v.metrics.get(SPEED)
    return (
        clean(v.name),
        number(loss.mean if loss else None),
        number(loss.high - loss.mean if loss and loss.high is not None else None),
        f"{len(v.finished)}/{len(v.runs)}",
        whole(speed.median if speed else None) + ("*" if emulated(v) else ""),
        scaled(v.planned.cost.get("training_flops_per_token")),
        peak_memory(v),
        kv_bytes(v),
    )


def _effects(content: ReportContent) -> Fitting:
    heads = ("Component", content.effects.columns[1].label, "with − without", f"{confidence(content.result)} interval",
             "more runs", "speed")  # fmt: skip
    rows = map(_effect, content.result.comparisons)
    return _table("What each component is worth, in nats per token", heads, rows, n_texts=2)


def _effect(c: Comparison) -> tuple[str | Text, ...]:
    from rich.text import Text

    return (
        clean(label(c)),
        Text(
            verdict_said(c.loss.verdict, c.loss.low, c.loss.high, c.loss.margin), style=STYLES.get(c.loss.verdict, "")
        ),
        signed(c.loss.estimate),
        signed_between(c.loss.low, c.loss.high) if c.loss.low is not None else "none",
        further_runs(c.loss, pair_run_s(c)),
        ratio(c.speed)[0],
    )
