"""The tables behind the answer: each kind of evidence by itself, with all its numbers and where they are from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from ablate.attribution.indices import TITLES
from ablate.evidence.changes.content import AnswerContent
from ablate.evidence.changes.exact import CACHE, FLOPS, PARAMETERS, STATE, Figure
from ablate.evidence.changes.measured import Measured
from ablate.evidence.changes.sentences import factor, saving, speed
from ablate.evidence.published import said
from ablate.quantities import NONE, listed, memory, number, plural, scaled
from ablate.report.tables.table import Columns, Table, text
from ablate.report.which_change.links import Linked, make_linked, of_source, towards
from ablate.report.which_change.overview import WAYS, loss, name


def exact_table(content: AnswerContent) -> Table:
    """Every figure without and with the change."""
    columns: Columns = [text("Change"), "FLOPs per token", "Parameters", "KV bytes per token",
                        "Weights and optimizer state"]  # fmt: skip
    rows = []
    for change in content.changes:
        cells = [_pair(change.exact.figure(figure)) for figure in (FLOPS, PARAMETERS, CACHE, STATE)]
        rows.append([f"{name(change)}{change.exact.reason and f' ({change.exact.reason})'}", *cells])
    note = (
        f"Without to with, each beside the whole recipe of {content.preset}; one number is unchanged. Weights in BF16, "
        "float32 master weights and two moments, over all ranks together. Without experts (moe) is a dense "
        "feed-forward of equal activated FLOPs."
    )
    return make_linked(f"Exact, at the size of {content.preset}", columns, rows, note)


def further_table(content: AnswerContent) -> Table:
    """What else of a change is known exactly."""
    columns: Columns = [text("Change"), text("Figure"), "Without", "With"]
    rows = [
        [name(change), f.title, _amount(f.off, f.unit), _amount(f.on, f.unit)]
        for change in content.changes
        for f in change.exact.further
    ]
    note = f"Bytes and copies in the layout of {content.speeds.layout_source}, expected over uniform routing."
    return make_linked("Exact too", columns, rows, note if rows and content.speeds.layout_source else "")


def _pair(found: Figure | None) -> str:
    if found is None:
        return NONE
    if found.on == found.off:
        return _amount(found.on, found.unit)
    return f"{_amount(found.off, found.unit)} to {_amount(found.on, found.unit)}"


def _amount(value: float, unit: str) -> str:
    if unit == "B":
        return memory(value)
    return scaled(value, unit) if unit or value >= 1000 else number(value, 0 if value == int(value) else 2)


def simulated_table(content: AnswerContent) -> Table:
    """Factors of tokens a second by three indices, and the memory of the fullest rank."""
    columns: Columns = [text("Change"), TITLES["owen"].capitalize(), "Of it FLOPs per token, exact",
                        TITLES["first"].capitalize(), TITLES["last"].capitalize(), text("Resolved"),
                        "Memory of the fullest rank, with", "Without"]  # fmt: skip
    rows = []
    for change in content.changes:
        found = change.simulated
        if found is None:
            continue
        room = "" if found.fits_without else ", too much"
        rows.append([
            change.name, speed(found.factor), f"{number(found.from_flops_per_token, 2)}×", speed(found.added_first),
            speed(found.left_out), "yes" if found.resolved else "no", memory(found.memory_with_bytes),
            f"{memory(found.memory_without_bytes)}{room}",
        ])  # fmt: skip
    if content.speeds.together is not None:
        rows.append(["all together", speed(content.speeds.together), *[""] * 6])
    fast = content.speeds
    note = (
        f"Tokens a second and GPU, above 1 is faster, with 5 to 95 % over the inputs; one layout for all "
        f"{fast.n_variants} variants ({fast.layout_source}), of which {fast.n_beyond_memory} would not fit the memory."
    )
    return make_linked(f"Simulated, on {fast.cluster_title}", columns, rows, note if rows else "")


def measured_table(content: AnswerContent, out: Path) -> Table:
    """Every effect of every study, with the study it is of."""
    columns: Columns = [text("Change, instead of"), text("Study"), "Parameters", "FLOP a run",
                        "Tokens saved (95 % interval)", text("Verdict on tokens"), "FLOPs per token, exact",
                        "Training FLOPs saved", text("Verdict on FLOPs"), "Loss, nats per token",
                        text("Verdict on the loss"), text("Index")]  # fmt: skip
    rows = [
        [f"{each.component}, instead of {each.against}", study_link(each, out), scaled(each.parameters),
         scaled(each.flops, "FLOP"), saving(each.tokens), each.tokens.verdict if each.tokens else each.reason,
         NONE if each.log_flops_per_token is None else factor(each.log_flops_per_token), saving(each.flops_cost),
         each.flops_cost.verdict if each.flops_cost else "", loss(each.loss), each.loss.verdict, TITLES[each.index]]
        for change in content.changes
        for each in change.measured
    ]  # fmt: skip
    wholes = [
        ["all together", Linked(whole.study.name, _report(whole.study.folder, out)), scaled(whole.study.parameters),
         scaled(whole.study.flops, "FLOP"), factor(whole.log_tokens), "",
         factor(whole.log_flops - whole.log_tokens), factor(whole.log_flops), "", loss(whole.loss), "", ""]
        for whole in content.together
    ]  # fmt: skip
    note = (
        "Saved: cost without over cost with, to one loss of each study; above 1 is a saving. The loss is on minus off "
        "at what the study matched, so below zero is a gain. Margins: 2 % of a cost, and each study's own in nats."
    )
    return make_linked("Measured here", columns, [*rows, *wholes], note if rows else "")


def study_link(found: Measured, out: Path) -> Linked:
    return Linked(found.study.name, _report(found.study.folder, out))


def _report(folder: Path, out: Path) -> str:
    page = folder / "report.md"
    return towards(page if page.is_file() else folder, out)


def trend_table(content: AnswerContent) -> Table:
    """How savings in tokens move with size, where there are two sizes."""
    columns: Columns = [text("Change"), "Sizes", "Saving in tokens, change per decade of compute",
                        "95 % interval", text("Resolved"), text("Half a decade further")]  # fmt: skip
    rows = list(_trends(content))
    if all(len(change.sizes) < 2 for change in content.changes):
        rows = []
    note = (
        "Factors by which the saving is multiplied for each tenfold training compute. Of two sizes it is their "
        "difference alone; a line with its spread, and a prediction, need three."
    )
    return make_linked("How the savings move with size", columns, rows, note if rows else "")


def _trends(content: AnswerContent) -> Iterator[list[str]]:
    for change in content.moving:
        found = change.trend
        if found.per_decade is None or found.low is None or found.high is None:
            yield [change.name, str(found.n_sizes), NONE, NONE, "", found.reason]
            continue
        ends = f"{number(math.exp(found.low), 2)} to {number(math.exp(found.high), 2)}"
        further = found.prediction
        said_of = NONE if further is None else (
            f"{factor(further.estimate)} ({factor(further.low)} to {factor(further.high)}) at "
            f"{scaled(further.flops, 'FLOP')}"
        )  # fmt: skip
        resolved = "yes" if found.resolved else "no"
        yield [change.name, str(found.n_sizes), factor(found.per_decade), ends, resolved, said_of]


def published_tables(content: AnswerContent) -> tuple[Table, ...]:
    """A table a change: every finding, with its source and whether the rule counts it."""
    columns: Columns = [text("What was compared"), text("Found"), text("Scale"), "Tokens", "Runs an arm",
                        text("Source"), text("Place"), text("Counted as")]  # fmt: skip
    found = []
    for change in content.changes:
        counted = {each.finding: each.direction for each in change.reported.counted}
        rows = [
            [finding.claim + (f" (against {finding.against})" if finding.against else ""), said(finding), finding.scale,
             scaled(finding.tokens) if finding.tokens else NONE, str(finding.runs), of_source(source.title),
             finding.at, "not counted" if finding not in counted else dict(WAYS)[counted[finding]]]
            for source, finding in change.reported.findings
        ]  # fmt: skip
        found.append(make_linked(f"Published: {change.component.title} ({change.name})", columns, rows))
    return tuple(found)


def equality_table(content: AnswerContent, out: Path) -> Table:
    """What shows that the machinery changes no loss."""
    columns: Columns = [text("Change"), text("Table"), text("Alternatives compared"), "Variants", "Cases equal",
                        "Largest difference of a gradient", text("Command")]  # fmt: skip
    rows = []
    for change in content.changes:
        shown = change.equality
        if shown is None:
            continue
        error = NONE if shown.largest_error is None else f"{shown.largest_error:.0e}".replace("-", "−")
        table = "none is kept here" if shown.file is None else Linked(shown.file.name, towards(shown.file, out))
        rows.append([change.name, table, listed(shown.alternatives), str(shown.n_variants),
                     f"{shown.n_hold} of {plural(shown.n_cases, 'case')}", error, shown.command])  # fmt: skip
    note = (
        "Losses, counts and gradients of a step on real ranks against one process, in float64; the difference is a "
        "share of the largest gradient of its parameter, where FP8's products sum in float32."
    )
    return make_linked("Shown to leave the loss alone", columns, rows, note)
