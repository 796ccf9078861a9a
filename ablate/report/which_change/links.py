"""Texts that lead somewhere: cells with an address beside them, which each renderer lays out its own way."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from ablate.report.cleaning import clean
from ablate.report.tables.table import Columns, Table, make

ARXIV: Final = "arXiv:"


class Linked(str):
    """Plain text with an address: a file as seen from the page's own folder, or an arXiv abstract."""

    href: str
    __slots__ = ("href",)

    def __new__(cls, text: object, href: str) -> Linked:
        found = super().__new__(cls, clean(text))
        found.href = href
        return found


def towards(path: Path, out: Path) -> str:
    """A file or folder as seen from the page's folder."""
    return Path(os.path.relpath(path, out)).as_posix()


def of_source(title: str) -> str:
    """A paper's title, with its abstract's address where it names one."""
    _, found, number = title.partition(ARXIV)
    if not found:
        return clean(title)
    return Linked(title, f"https://arxiv.org/abs/{number.split()[0].rstrip(',;')}")


def make_linked(title: str, columns: Columns, rows: Iterable[Sequence[str]], note: str = "") -> Table:
    """As `make`, with the addresses of the cells kept."""
    lines = [tuple(row) for row in rows]
    plain = make(title, columns, lines, note)
    kept = tuple(
        tuple(cell if isinstance(cell, Linked) else text for cell, text in zip(line, texts, strict=True))
        for line, texts in zip(lines, plain.rows, strict=True)
    )
    return Table(title=plain.title, columns=plain.columns, rows=kept, note=plain.note)
