"""The report for people at a terminal: three small tables and the answer, within 100 columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ablate.attribution.study.compare import LOSS, SPEED
from ablate.attribution.verdicts import GAIN, HARM, NO_EFFECT
from ablate.quantities import NONE, number, scaled, signed, signed_between, whole
from ablate.report.cleaning import clean
from ablate.report.content import ReportContent
from ablate.report.names import confidence, emulated, label
from ablate.report.tables.effects import further_seeds
from ablate.report.tables.speed import kv_bytes, peak_memory, ratio

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

STYLES = {GAIN: "green", HARM: "red", NO_EFFECT: "cyan"}


def render(content: ReportContent, reports: Sequence[Path] = ()) -> Group:
    """What `run` prints at its end. `reports`: files that were written."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(content.question, style="bold"), Text(content.scale, style="dim"), Text()]
    parts += [_variants(content)]
    if content.result.attribution is not None:
        parts.append(_attribution(content))
    if content.result.comparisons:
        parts.append(_effects(content))
    if any(map(emulated, content.result.variants)):
        parts.append(Text(content.speed_notes[0], style="dim"))
    lost = content.lost_runs.rows
    said = "; ".join(f"{row[0]} seed {row[1]} {row[2]}: {row[3]}" for row in lost) if lost else "none"
    parts.append(Text(f"Failed, diverged and missing runs: {said}", style="yellow" if lost else "dim"))
    parts += [Text(f"Warning: {warning}", style="yellow") for warning in content.warnings]
    parts += [Text(), Text(" ".join(content.answer), style="bold")]
    parts += [Text(f"Report: {clean(path)}", overflow="fold") for path in reports]
    return Group(*parts)


def _table(title: str, heads: Sequence[str], n_texts: int = 1) -> Table:
    """Columns of text first, then numbers, each narrow: rich folds the widest column first."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1),
                  pad_edge=False)  # fmt: skip
    for i, head in enumerate(heads):
        if i < n_texts:
            table.add_column(Text(head), overflow="fold", min_width=8)
        else:
            table.add_column(Text(head), justify="right", overflow="fold", min_width=5)
    return table


def _attribution(content: ReportContent) -> Table:
    from rich.text import Text

    found = content.attribution
    table = _table(found.title, [column.label for column in found.columns], 2)
    for row in found.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _variants(content: ReportContent) -> Table:
    from rich.text import Text

    heads = ("Variant", "nats/token", f"± ({confidence(content.result)})", "seeds", "tokens/s", "FLOP/token", "memory",
             "KV/token")  # fmt: skip
    table = _table("Variants", heads)
    for v in content.result.variants:
        loss, speed = v.metrics.get(LOSS), v.metrics.get(SPEED)
        cells = (
            clean(v.name),
            number(loss.mean if loss else None),
            number(loss.high - loss.mean) if loss and loss.high is not None else NONE,
            f"{len(v.finished)}/{len(v.runs)}",
            whole(speed.median if speed else None) + ("*" if emulated(v) else ""),
            scaled(v.cost.get("training_flops_per_token")),
            peak_memory(v),
            kv_bytes(v),
        )
        table.add_row(*map(Text, cells))
    if any(map(emulated, content.result.variants)):
        table.caption = Text("* emulated speed", style="dim")
    return table


def _effects(content: ReportContent) -> Table:
    from rich.text import Text

    heads = ("Component", "Verdict", "with − without", f"{confidence(content.result)} interval", "more seeds", "speed")
    table = _table("What each component is worth, in nats per token", heads, n_texts=2)
    for c in content.result.comparisons:
        table.add_row(
            Text(clean(label(c))),
            Text(c.loss.verdict, style=STYLES.get(c.loss.verdict, "")),
            Text(signed(c.loss.estimate)),
            Text(signed_between(c.loss.low, c.loss.high) if c.loss.low is not None else "none"),
            Text(further_seeds(c.loss)),
            Text(ratio(c.speed)[0]),
        )
    return table
