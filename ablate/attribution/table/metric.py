"""The column that is attributed: which one, its numbers by run, or mean, spread and count of each variant as runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ablate.attribution.table import names
from ablate.attribution.table.cells import Measured, is_diverged, is_number, levels_of, read_numbers
from ablate.attribution.table.rows import check_column
from ablate.attribution.table.sheet import Sheet, quoted


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Columns of a table of means: where their spread and the number of runs stand."""

    column: str | None  # None: behind a ± in the metric's own cells
    standard_error: bool  # the spread is that of the mean, not of one run
    count: str


def choose(sheet: Sheet, taken: Sequence[str], metric: str | None) -> str:
    """The metric's column. ValueError where none or several could be it; `taken` are columns that cannot."""
    if metric is not None:
        check_column(metric, sheet, "--metric")
        if metric in taken:
            raise ValueError(f"{metric!r} is the column of seeds and cannot be the metric; name another column")
        return metric
    known = [name for name in sheet.directions if name in sheet.columns]
    levels = [name for name, cells in sheet.columns.items() if levels_of(cells) is not None]
    rest = [name for name in sheet.columns if name not in (*levels, *taken)]
    numeric = known or [name for name in rest if _holds_numbers(sheet.columns[name]) and not names.declared(name)]
    beside = (names.is_step, names.is_label, names.is_clock, names.is_spread)
    results = [name for name in numeric if not any(is_other(name) for is_other in beside)]
    for narrower in (results, [name for name in results if names.lower_is_better(name) is not None]):
        numeric = narrower if len(numeric) > 1 and narrower else numeric
    if len(numeric) == 1:
        return numeric[0]
    if numeric:
        raise ValueError(f"the table has several possible metrics ({', '.join(numeric)}); name one with --metric")
    for name in rest:
        cells = sheet.columns[name]
        if sum(cell[:1].isdigit() for cell in cells) * 2 > len(cells):
            raise ValueError(
                f"{sheet.places[0]}: {name} is {quoted(cells[0])}, which is not a plain number; write numbers without "
                f"a unit, or name another column with --metric"
            )
    if rest:
        raise ValueError(f"no column holds numbers to compare ({', '.join(rest)} hold text); add a metric column")
    raise ValueError(
        f"every column besides the seed reads as on or off ({', '.join(levels)}), so none is left as metric; "
        f"name it with --metric"
    )


def _holds_numbers(cells: Sequence[str]) -> bool:
    filled = [cell for cell in cells if cell]
    return 2 * sum(is_number(cell) or is_diverged(cell) for cell in filled) > len(filled)


def spread_of(sheet: Sheet, metric: str) -> Spread | None:
    """Where a table of means has spread and count of this metric; None for a table of runs."""
    sizes = [name for name in sheet.columns if names.is_size(name) and name != metric]
    count = next(iter(sorted(sizes, key=lambda name: name.lower() not in names.SIZES)), None)
    if count is None:
        return None
    wanted = set(names.words(metric)) - names.MEANS
    for name in sheet.columns:
        kind = set(names.words(name)) & set(names.SPREADS)
        if kind and set(names.words(name)) - kind in (set(), wanted):
            return Spread(column=name, standard_error=names.SPREADS[kind.pop()], count=count)
    if all("±" in cell or "+" in cell[1:] or "(" in cell for cell in sheet.columns[metric]):
        return Spread(column=None, standard_error=False, count=count)
    return None


def numbers(sheet: Sheet, metric: str, *, log: bool) -> Measured:
    """The metric of every row. ValueError for a cell that is no finite number (not above 0 with `log`)."""
    for cell, place in zip(sheet.columns[metric], sheet.places, strict=True):
        if is_diverged(cell):
            raise ValueError(
                f"{place}: {metric} is {quoted(cell)}; a diverged or failed run is not averaged: run it again with a "
                f"new seed, replace the row, and report how many diverged"
            )
    found = read_numbers(metric, sheet.columns[metric], sheet.places, sheet.decimal_comma)
    for value, cell, place in zip(found.values, sheet.columns[metric], sheet.places, strict=True):
        if not math.isfinite(value):
            raise ValueError(f"{place}: {metric} is {quoted(cell)}, beyond what a double can hold; correct the cell")
        if log and value <= 0:
            raise ValueError(f"{place}: {metric} is {cell}, and a logarithm needs numbers above 0; leave out --log")
    return found


def as_runs(sheet: Sheet, metric: Measured, spread: Spread) -> tuple[list[int], list[float]]:
    """Rows of means as the runs that have exactly this mean, sd and count: (row of each run, value of each run).

    A t-interval depends on runs through these three alone. ValueError for a count or a spread that cannot be.
    """
    counts = read_numbers(spread.count, sheet.columns[spread.count], sheet.places, False).values
    sds: Sequence[float | None] = metric.errors
    if spread.column is not None:
        filled = [cell or "0" for cell in sheet.columns[spread.column]]
        sds = read_numbers(spread.column, filled, sheet.places, sheet.decimal_comma).values
    at, values = [], []
    for row, (mean, sd, count, place) in enumerate(zip(metric.values, sds, counts, sheet.places, strict=True)):
        n = round(count)
        if n != count or n < 1 or sd is None or sd < 0:
            raise ValueError(
                f"{place}: mean of {spread.count} = {count:g} runs with spread {sd}; the count is a whole number of 1 "
                f"or more and the spread 0 or more"
            )
        shape = np.linspace(-1, 1, n) if n > 1 else np.zeros(1)
        size = sd * (n**0.5 if spread.standard_error else 1.0)
        at += [row] * n
        values += (mean + (shape / shape.std(ddof=1) * size if n > 1 else shape)).tolist()
    return at, values
