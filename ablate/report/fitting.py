"""A table for a terminal of any width: the last columns are left out where words would be broken, and it says so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ablate.quantities import listed

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table
    from rich.text import Text

GAP = 3  # characters between two columns: the padding of both and the line
MIN_TEXT = 8  # characters that a column of words may be folded to
MAX_WORD = 24  # characters of a name: a longer one is folded after all
LEAST = 2  # columns that are always shown


class Fitting:
    """A table that rich prints: `n_texts` columns of words first, which may be folded, then numbers, which may not."""

    def __init__(self, title: str, heads: Sequence[str], rows: Iterable[Sequence[str | Text]], n_texts: int) -> None:
        self.title, self.heads, self.n_texts = title, list(heads), n_texts
        self.rows = [list(row) for row in rows]
        self.caption = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.text import Text

        n = len(self.heads)
        while n > LEAST and sum(map(self._least, range(n))) + GAP * n > options.max_width:
            n -= 1
        yield self._table(self._widths(n, options.max_width))
        said = [self.caption] if self.caption else []
        if n < len(self.heads):
            said.append(f"too narrow for {listed(self.heads[n:])}; the report has them")
        if said:
            yield Text("; ".join(said), style="dim")

    def _least(self, column: int) -> int:
        """Characters that a column takes at least: its longest word, if it may be folded between words."""
        cells = [self.heads[column], *(str(row[column]) for row in self.rows)]
        longest = max((len(word) for cell in cells for word in cell.split()), default=0)
        return min(max(longest, MIN_TEXT), MAX_WORD) if column < self.n_texts else longest

    def _widths(self, n: int, available: int) -> list[int]:
        """Characters of the first n columns: what each takes at least, then what is left, from the first on.

        Not left to rich, which takes from the widest column first and cuts the last where that may not be folded.
        """
        widths = [self._least(column) for column in range(n)]
        left = max(0, available - sum(widths) - GAP * n)
        for column in range(n):
            whole = max(len(self.heads[column]), *(len(str(row[column])) for row in self.rows), 0)
            more = min(left, max(0, whole - widths[column]))
            widths[column] += more
            left -= more
        return widths

    def _table(self, widths: Sequence[int]) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(self.title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
                      padding=(0, 1), pad_edge=False)  # fmt: skip
        for i, width in enumerate(widths):
            side = "left" if i < self.n_texts else "right"
            table.add_column(Text(self.heads[i]), justify=side, overflow="fold", width=width)  # type: ignore[arg-type]
        for row in self.rows:
            # As Text, since a plain string may hold markup of rich.
            table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row[: len(widths)]))
        return table
