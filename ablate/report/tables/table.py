"""A table of texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ablate.report.cleaning import clean


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    label: str
    numeric: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table that has no rows is not shown."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


Columns: TypeAlias = list[Column | str]  # a text is a column of numbers


def text(label: str) -> Column:
    """A column of words."""
    return Column(label=label, numeric=False)


def make(title: str, columns: Columns, rows: Iterable[Sequence[str]], note: str = "") -> Table:
    """A table whose cells are cleaned, since some of them come from a study's files."""
    heads = tuple(c if isinstance(c, Column) else Column(label=c) for c in columns)
    lines = tuple(tuple(clean(cell) for cell in row) for row in rows)
    assert all(len(row) == len(heads) for row in lines)
    return Table(title=title, columns=heads, rows=lines, note=note)
