"""Which rows count: those asked for, finished, with a result, the last of each run; the count left out is told."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ablate.attribution.table import names
from ablate.attribution.table.cells import LEVELS, is_number
from ablate.attribution.table.sheet import Sheet, one_line
from ablate.errors import nearest


def pairs(options: Sequence[str], option: str, sheet: Sheet) -> list[tuple[str, str]]:
    """[(COLUMN, VALUE)] of an option, both known to the sheet. ValueError names what is not."""
    out = []
    for given in options:
        name, equals, value = (part.strip() for part in given.partition("="))
        if not equals or not name:
            raise ValueError(f"{option} is {given!r}; it takes COLUMN=VALUE")
        check_column(name, sheet, option)
        values = dict.fromkeys(sheet.columns[name])
        if not any(same(cell, value) for cell in values):
            shown = ", ".join(one_line(cell)[:40] or "(blank)" for cell in list(values)[:6]) + (
                " ..." if len(values) > 6 else ""
            )
            raise ValueError(f"{option}: no row has {name}={value}; the column holds {shown}")
        out.append((name, value))
    return out


def check_column(name: str, sheet: Sheet, option: str) -> None:
    """ValueError, with the nearest name, for a column that the sheet does not have."""
    if name not in sheet.columns:
        raise ValueError(f"{option}: the table has no column {name!r}; {nearest(name, sheet.columns)}")


def same(cell: str, value: str) -> bool:
    """True where two texts mean the same: equal but for case, or numbers or levels of one size."""
    a, b = cell.lower(), value.lower()
    if a == b:
        return True
    if is_number(cell) and is_number(value):
        return _exact(a) == _exact(b)
    return a in LEVELS and LEVELS[a] == LEVELS.get(b) and not is_number(cell) and not is_number(value)


def _exact(number: str) -> str | float:
    """3 and 3.0 are one number; whole ones keep all their digits, since a seed may have 64 bits."""
    whole = re.fullmatch(r"([+-]?\d+)(?:\.0*)?", number)
    try:
        return str(int(whole.group(1))) if whole else float(number)
    except ValueError:
        return number


def canonical(cell: str) -> str:
    """A seed as text: 3 and 3.0 are one, and 64 bits are kept."""
    return str(_exact(cell)) if re.fullmatch(r"[+-]?\d+(\.0*)?", cell) else cell


def where(sheet: Sheet, options: Sequence[str]) -> Sheet:
    """Rows that have every COLUMN=VALUE."""
    for name, value in pairs(options, "--where", sheet):
        sheet = sheet.keep([r for r, cell in enumerate(sheet.columns[name]) if same(cell, value)])
    return sheet


def finished(sheet: Sheet) -> Sheet:
    """Without the rows of runs that crashed or still run, and without the column that says so."""
    for name, column in sheet.columns.items():
        states = [re.split(r"[.\s]", cell.lower())[-1] for cell in column]
        known = [state in names.FINISHED | names.UNFINISHED for state in states]
        if not set(names.words(name)) & names.STATES or not column or not all(known):
            continue
        kept = [r for r, state in enumerate(states) if state in names.FINISHED]
        lost = [state for state in states if state in names.UNFINISHED]
        told = ", ".join(f"{lost.count(state)} {state}" for state in dict.fromkeys(lost))
        warning = (
            f"{len(lost)} of {len(column)} rows left out because their run did not finish ({told})" if lost else ""
        )
        return sheet.keep(kept, warning=warning).without(name)
    return sheet


def filled(sheet: Sheet, columns: Sequence[str]) -> Sheet:
    """Without the rows in which one of these columns is blank; each column's count is told."""
    for name in columns:
        blank = [place for cell, place in zip(sheet.columns[name], sheet.places, strict=True) if not cell]
        if blank:
            shown = ", ".join(blank[:3]) + (" ..." if len(blank) > 3 else "")
            rows = f"{len(blank)} row{'s' * (len(blank) != 1)} left out because {name} is blank ({shown})"
            sheet = sheet.keep([r for r, cell in enumerate(sheet.columns[name]) if cell], warning=rows)
    return sheet


def final(sheet: Sheet, run: Sequence[str], *, last: bool) -> Sheet:
    """One row per run. `run`: the columns that tell runs apart. ValueError for a history, unless its last row is asked.

    Rows are a history where a step or epoch takes another value in every row of one run.
    """
    step = _history(sheet, run)
    if step is None:
        if last:
            raise ValueError(
                "--last takes the final row of each run, and no column of steps or epochs tells rows apart"
            )
        return sheet
    groups = _groups(sheet, run)
    if not last:
        raise ValueError(
            f"the rows are steps of {len(groups)} run{'s' * (len(groups) != 1)} (column {step}), not runs, and are not "
            f"independent; --last takes the final row of each, --where {step}=VALUE one step"
        )
    number = [float(cell.replace(",", "")) if is_number(cell) else float("-inf") for cell in sheet.columns[step]]
    kept = sorted(max(rows, key=number.__getitem__) for rows in groups.values())
    left = len(sheet.places) - len(kept)
    return sheet.keep(kept, warning=f"{left} rows left out: of each run only the last {step} counts")


def _groups(sheet: Sheet, run: Sequence[str]) -> dict[tuple[str, ...], list[int]]:
    out: dict[tuple[str, ...], list[int]] = {}
    for r in range(len(sheet.places)):
        out.setdefault(tuple(sheet.columns[name][r] for name in run), []).append(r)
    return out


def _history(sheet: Sheet, run: Sequence[str]) -> str | None:
    """The column of steps that makes rows of one run, or None. Final rows of reruns seldom stop at the same steps."""
    several = [rows for rows in _groups(sheet, run).values() if len(rows) > 1]
    for name, column in sheet.columns.items():
        if not names.is_step(name) or name in run or not several or not all(is_number(cell) for cell in column if cell):
            continue
        seen = [{column[r] for r in rows} for rows in several]
        distinct = all(len(steps) == len(rows) for steps, rows in zip(seen, several, strict=True))
        if distinct and (len(seen) == 1 or 2 * len(seen[0] & seen[1]) >= min(len(seen[0]), len(seen[1]))):
            return name
    return None
