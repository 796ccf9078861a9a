"""Reads a table of runs from anywhere: its component columns, metric and seeds; one sentence for what is wrong."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

WORDS = {"on": True, "off": False, "true": True, "false": False, "yes": True, "no": False}
LEVELS = {**WORDS, "1": True, "0": False, "1.0": True, "0.0": False}
SEED = "seed"

LOWER = ("loss", "nll", "ppl", "perplexity", "bpb", "bits", "error", "cost", "second", "time", "latency", "bytes",
         "memory", "flops", "wer")  # fmt: skip
HIGHER = (
    "accuracy",
    "acc",
    "per_s",
    "per_second",
    "throughput",
    "score",
    "reward",
    "mfu",
    "speed",
    "auc",
    "f1",
    "bleu",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Checked rows: levels of every component column, one metric, seeds where there are any."""

    metric: str
    components: tuple[str, ...]  # columns that hold both levels
    constant: Mapping[str, bool]  # component columns with one level only
    levels: tuple[Mapping[str, bool], ...]  # per row, of both kinds of column
    values: tuple[float, ...]
    seeds: tuple[str | None, ...]
    lines: tuple[int, ...]  # line in the file, the header is line 1
    warnings: tuple[str, ...]


def read_csv(path: str | Path) -> tuple[dict[str, list[str]], list[int]]:
    """Columns as text, and the line of each row. ValueError: no such file, no rows, ragged rows, repeated columns."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise ValueError(f"cannot read {path}: {problem}; give a CSV file in UTF-8") from problem
    reader = csv.reader(text.splitlines())
    header = [name.strip() for name in next(reader, [])]
    if not header or not all(header):
        raise ValueError(f"{path} has no header line with a name for every column; the first line names the columns")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise ValueError(f"{path}: the column {repeated[0]!r} appears twice in line 1; give every column its own name")
    columns: dict[str, list[str]] = {name: [] for name in header}
    lines = []
    for row in reader:
        if not any(field.strip() for field in row):
            continue
        if len(row) != len(header):
            raise ValueError(
                f"line {reader.line_num} has {len(row)} fields and the header has {len(header)}; make them equal"
            )
        lines.append(reader.line_num)
        for name, field in zip(header, row, strict=True):
            columns[name].append(field.strip())
    return columns, lines


def columns_of(frame: Any) -> tuple[dict[str, list[str]], list[int]]:
    """The same from a pandas DataFrame or a mapping of columns; lines count as if it were written to a CSV file."""
    names = list(frame.columns) if hasattr(frame, "columns") else list(frame)
    columns = {str(name): ["" if value is None else str(value).strip() for value in frame[name]] for name in names}
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1:
        raise ValueError(f"the columns have {sorted(lengths)} rows; all columns of a table have the same number")
    return columns, list(range(2, 2 + (lengths.pop() if lengths else 0)))


def read_table(
    columns: Mapping[str, Sequence[str]], lines: Sequence[int], *, metric: str | None = None, log: bool = False
) -> Table:
    """Check a table. Component columns are those that hold nothing but on/off, true/false, yes/no, 1/0, in any case.

    ValueError, with the line: a level or metric that cannot be read, a metric that is not finite (or not positive with
    `log`), a missing or repeated seed, one run only, no component column, no or several possible metrics.
    """
    if len(lines) < 2:
        raise ValueError(f"the table has {len(lines)} run{'s' * (len(lines) != 1)}; an effect compares at least two")
    seed = next((name for name in columns if name.lower() == SEED), None)
    levels = [name for name in columns if name not in (metric, seed) and _holds_levels(name, columns[name], lines)]
    chosen = _metric(columns, levels, seed, metric)
    levels = [name for name in levels if name != chosen]
    rows = tuple({name: LEVELS[columns[name][r].lower()] for name in levels} for r in range(len(lines)))
    varying = tuple(name for name in levels if len({row[name] for row in rows}) == 2)
    if not varying:
        raise ValueError(_no_component(columns, levels, chosen, seed))
    constant = {name: rows[0][name] for name in levels if name not in varying}
    warnings = [
        f"column {name} is {'on' if level else 'off'} in every row, so it has no effect to estimate"
        for name, level in constant.items()
    ]
    unused = [name for name in columns if name not in (*levels, chosen, seed) and not _numeric(columns[name])]
    if unused:
        warnings.append(f"not used because they hold text: {', '.join(unused)}")
    table = Table(
        metric=chosen, components=varying, constant=constant, levels=rows,
        values=tuple(_value(chosen, text, line, log) for text, line in zip(columns[chosen], lines, strict=True)),
        seeds=_seeds(columns, seed, lines), lines=tuple(lines), warnings=tuple(warnings),
    )  # fmt: skip
    _refuse_repeats(table)
    return table


def _holds_levels(name: str, column: Sequence[str], lines: Sequence[int]) -> bool:
    """True for a component column. ValueError where only some entries are level words: most likely a slip."""
    known = [text.lower() in LEVELS for text in column]
    if all(known):
        return True
    words = any(text.lower() in WORDS for text in column)
    gaps = [text.lower() in ("", "nan", "none") for text in column]
    only_gaps = any(known) and all(level or gap for level, gap in zip(known, gaps, strict=True))
    if words or only_gaps:
        at = known.index(False)
        raise ValueError(
            f"line {lines[at]}: {name} is {column[at]!r}, but other rows of this column are on or off; write on or off "
            f"(or 1/0, true/false)"
        )
    return False


def _metric(columns: Mapping[str, Sequence[str]], levels: Sequence[str], seed: str | None, metric: str | None) -> str:
    if metric is not None:
        if metric not in columns:
            near = get_close_matches(metric, list(columns), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the columns are {', '.join(columns)}"
            raise ValueError(f"the table has no column {metric!r}; {hint}")
        if metric == seed:
            raise ValueError(f"{metric!r} is the column of seeds and cannot be the metric; name another column")
        return metric
    rest = [name for name in columns if name not in levels and name != seed]
    numeric = [name for name in rest if any(_is_number(text) for text in columns[name])]
    if len(numeric) == 1:
        return numeric[0]
    if numeric:
        raise ValueError(f"the table has several possible metrics ({', '.join(numeric)}); name one with --metric")
    if rest:
        raise ValueError(f"no column holds numbers to compare ({', '.join(rest)} hold text); add a metric column")
    raise ValueError(
        f"every column besides the seed reads as on or off ({', '.join(levels)}), so none is left as metric; "
        f"name it with --metric"
    )


def _no_component(columns: Mapping[str, Sequence[str]], levels: Sequence[str], metric: str, seed: str | None) -> str:
    if levels:
        return (
            f"{', '.join(levels)} never change in this table, so there is nothing to compare; add runs of both levels"
        )
    others = [name for name in columns if name not in (metric, seed)]
    found = f"of {', '.join(others)} none holds" if others else "there is no other column that holds"
    return f"no component column: {found} only on/off, true/false or 1/0; add one column per component"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numeric(column: Iterable[str]) -> bool:
    return all(_is_number(text) for text in column)


def _value(metric: str, text: str, line: int, log: bool) -> float:
    if not _is_number(text):
        raise ValueError(
            f"line {line}: {metric} is {text!r}, which is not a number; write a number or take the row out"
        )
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(
            f"line {line}: {metric} is {text!r}; a diverged or failed run is not averaged: run it again with a "
            f"new seed, replace the row, and report how many diverged"
        )
    if not log:
        return value
    if value <= 0:
        raise ValueError(f"line {line}: {metric} is {text}, and a logarithm needs numbers above 0; leave out --log")
    return math.log(value)


def _seeds(columns: Mapping[str, Sequence[str]], seed: str | None, lines: Sequence[int]) -> tuple[str | None, ...]:
    if seed is None or not any(columns[seed]):
        return (None,) * len(lines)
    for text, line in zip(columns[seed], lines, strict=True):
        if not text or text.lower() == "nan":
            raise ValueError(f"line {line} has no seed, but other rows have one; give every row its seed or none")
    # 3 and 3.0 are one seed: a spreadsheet or a float column writes the second.
    return tuple(
        str(int(float(text))) if _is_number(text) and float(text).is_integer() else text for text in columns[seed]
    )


def _refuse_repeats(table: Table) -> None:
    first: dict[tuple[tuple[bool, ...], str], int] = {}
    for row, seed, line in zip(table.levels, table.seeds, table.lines, strict=True):
        if seed is None:
            continue
        key = (tuple(row.values()), seed)
        if key in first:
            raise ValueError(
                f"line {line} repeats seed {seed} of the variant in line {first[key]}; a variant has one run per seed, "
                f"so remove one or correct its seed"
            )
        first[key] = line


def guess_direction(metric: str) -> bool | None:
    """Whether lower is better, from the metric's name; None where the name does not say."""
    name = metric.lower()
    if any(word in name for word in HIGHER):
        return False
    return True if name.endswith(("_s", "_ms")) or any(word in name for word in LOWER) else None
