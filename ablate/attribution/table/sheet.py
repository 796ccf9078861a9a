"""A table before anything is known about it: cells as text, and where each row stands in its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """Columns of equal length. A blank cell is the empty text; numbers keep all their digits."""

    columns: Mapping[str, Sequence[str]]
    places: Sequence[str]  # of each row, for sentences: "line 4", "trial 7"
    decimal_comma: bool = False  # the separator is no comma, so one inside a number may be the decimal mark
    directions: Mapping[str, bool] = field(default_factory=dict)  # metric -> lower is better, where the source knows
    warnings: tuple[str, ...] = ()

    def keep(self, rows: Sequence[int], *, warning: str = "") -> Sheet:
        """The sheet with these rows only, and one more warning."""
        columns = {name: [column[r] for r in rows] for name, column in self.columns.items()}
        warnings = (*self.warnings, warning) if warning else self.warnings
        return replace(self, columns=columns, places=[self.places[r] for r in rows], warnings=warnings)

    def without(self, *names: str) -> Sheet:
        """The sheet without these columns."""
        return replace(self, columns={name: column for name, column in self.columns.items() if name not in names})


def sheet_of(frame: DataFrame | Mapping[str, Sequence[object]], row_name: str = "line") -> Sheet:
    """A data frame or a mapping of columns as a sheet; lines count as if it were written to a CSV file."""
    names = list(frame.columns) if hasattr(frame, "columns") else list(frame)
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"the column {repeated!r} appears twice; give every column its own name")
    flat = {name: "_".join(str(part) for part in name if str(part)) if isinstance(name, tuple) else one_line(str(name))
            for name in names}  # fmt: skip
    columns = {flat[name]: [as_text(value) for value in frame[name]] for name in names}
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1:
        raise ValueError(f"the columns have {sorted(lengths)} rows; all columns of a table have the same number")
    first = 2 if row_name == "line" else 1
    return Sheet(columns=columns, places=[f"{row_name} {first + r}" for r in range(lengths.pop() if lengths else 0)])


def one_line(name: str) -> str:
    """A column's name as it can stand in a sentence."""
    return " ".join(name.split())


def quoted(cell: str) -> str:
    """A cell as it can stand in a sentence: in quotes, on one line, and cut where it is long."""
    return repr(cell if len(cell) <= 60 else cell[:57] + "...")


def as_text(value: object) -> str:
    """A value of a frame as the text that a CSV file would have; None and not-a-number are blank, infinity is not."""
    from pandas import api, isna

    return "" if api.types.is_scalar(value) and isna(value) else str(value).strip()
