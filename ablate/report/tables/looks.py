"""How a study got its number of seeds: its plans, its planned looks, intervals that hold however often one looks."""

from __future__ import annotations

from collections.abc import Iterator

from ablate.attribution.design.sequential import e_interval, e_value
from ablate.attribution.study.compare import StudyResult
from ablate.quantities import listed, percent, plural, short, signed, signed_between
from ablate.report.cleaning import clean
from ablate.report.tables.table import Columns, Table, make, text
from ablate.runs.history import Entry, looks, plans, unplanned


def looks_made(result: StudyResult, entries: tuple[Entry, ...]) -> Table:
    """A row for each planned look, made or not; without rows where none was planned."""
    made, design = {_at(entry, result): entry for entry in looks(entries)}, result.plan.design
    columns: Columns = [text("Look"), text("What was read"), _unit(result).capitalize(), "Intervals"]
    rows = []
    for i, n in enumerate(design.looks):
        entry = made.get(n)
        said = "not made" if entry is None else "; ".join(f"{clean(k)} {v}" for k, v in entry.verdicts.items())
        level = entry.confidence if entry else result.plan.interval_confidence
        rows.append([f"{i + 1} of {len(design.looks)}", said, str(n), percent(level)])
    whole = percent(result.plan.confidence)
    note = (
        f"Each of {plural(design.stages, 'reading')} spends an equal part of alpha (Bonferroni), and the last one made "
        f"is this report. All together keep {whole}; intervals of {whole} each would miss more often than they say."
    )
    return make("Planned looks at the results", columns, rows, note if rows else "")


def plans_made(entries: tuple[Entry, ...]) -> Table:
    """A row for each plan, where there was more than one or its seeds were computed."""
    made = plans(entries)
    columns: Columns = ["Plan", "Runs", "Seeds", "Results that were there", text("Why so many")]
    rows = [
        [str(i + 1), str(entry.n_runs), str(entry.n_seeds), str(entry.n_records), entry.reason]
        for i, entry in enumerate(made)
        if len(made) > 1 or entry.origin != "given"
    ]
    return make("Plans of this study", columns, rows)


def any_time(result: StudyResult, entries: tuple[Entry, ...]) -> Table:
    """The e-process interval of each comparison of pairs, where seeds were added after results could be seen."""
    columns: Columns = [text("Component"), "With − without, nats/token", f"{percent(result.plan.confidence)} interval",
                        "E-value against 0", "Seeds"]  # fmt: skip
    rows = []
    for c in result.comparisons if unplanned(entries) else ():
        if c.pairing_ok and c.loss.low is not None:
            values = list(c.differences.values())
            found = e_interval(values, confidence=result.plan.confidence)
            ends = "unbounded yet" if found is None else signed_between(*found)
            rows.append([c.name, signed(c.loss.estimate), ends, short(e_value(values), 3), str(len(values))])
    note = (
        "The t-mixture e-process holds at every number of seeds, whenever one stops; its interval is wider than one "
        "whose number of seeds was planned. An e-value of 20 or more is evidence at the level of 5 %."
    )
    return make("Intervals that hold however often one looked", columns, rows, note if rows else "")


def of_history(result: StudyResult, entries: tuple[Entry, ...]) -> Iterator[str]:
    """What a reader must know of how the number of seeds came about."""
    changed = unplanned(entries)
    if changed:
        steps = [f"{entry.n_seeds} when {plural(entry.n_records, 'result')} were there" for entry in changed]
        yield (
            f"the number of seeds was changed after results could have been seen (to {listed(steps)}) and by no "
            "planned look: the intervals and verdicts assume that it was not, and may miss more often than they say"
            + "; the table of intervals that hold however often one looked has others"
            * bool(result.comparisons)
        )
    made = looks(entries)
    if result.plan.design.looks and made:
        n = list(result.plan.design.looks).index(_at(made[-1], result)) + 1
        yield (
            f"this is look {n} of {len(result.plan.design.looks)} that were planned, at "
            f"{plural(_at(made[-1], result), _unit(result)[:-1])}: its intervals are of "
            f"{percent(result.plan.interval_confidence)}, and one of "
            f"{percent(result.plan.confidence)} would be wrong here"
        )


def document(entries: tuple[Entry, ...]) -> list[dict[str, object]]:
    """The history for programs."""
    return [
        {
            "kind": entry.kind, "n_runs": entry.n_runs, "n_seeds": entry.n_seeds, "confidence": entry.confidence,
            "n_records": entry.n_records, "origin": entry.origin, "reason": entry.reason, "looks": list(entry.looks),
            "verdicts": dict(entry.verdicts),
        }
        for entry in entries
    ]  # fmt: skip


def _at(entry: Entry, result: StudyResult) -> int:
    return entry.n_runs if result.plan.design.name == "staged" else entry.n_seeds


def _unit(result: StudyResult) -> str:
    return "runs" if result.plan.design.name == "staged" else "seeds"
