"""Columns -> components: levels of on and off, factors of several values taken as arms, numbers taken as covariates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ablate.attribution.lattice import Floats
from ablate.attribution.table import names
from ablate.attribution.table.cells import LEVELS, is_number, levels_of, read_numbers
from ablate.attribution.table.rows import check_column, pairs, same
from ablate.attribution.table.sheet import Sheet, quoted

WORDS = frozenset(word for word in LEVELS if word.isalpha())
MOST_VALUES = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Roles:
    """What columns are taken for; a factor's value is that of its reference level."""

    binary: tuple[str, ...]  # on and off in the cells themselves
    named: Mapping[str, str]  # column -> the value that is on
    factors: Mapping[str, str]  # column of several values -> the baseline, which is off
    covariates: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are used."""
        return (*self.binary, *self.named, *self.factors, *self.covariates)


def roles(sheet: Sheet, others: Sequence[str], components: Sequence[str], on: Sequence[str]) -> Roles:
    """What each column is taken for, except `others` (metric, seed and their like).

    components: only these columns, if any are named. on: COLUMN=VALUE, the value that is on. ValueError where a column
    cannot be a component, or where none is left and something could be one.
    """
    named = dict(pairs(on, "--on", sheet))
    for name in (*components, *named):
        check_column(name, sheet, "--component")
        if name in others:
            raise ValueError(
                f"{name!r} is the metric, the seed or a size, and cannot be a component; name other columns"
            )
    free = [name for name in sheet.columns if name not in others and name not in named]
    chosen = [name for name in (components or free) if name not in named]
    binary = tuple(name for name in chosen if _holds_levels(name, sheet, demanded=name in components))
    rest = [name for name in chosen if name not in binary]
    covariates = [name for name in rest if _numeric(sheet.columns[name]) and _varies(sheet.columns[name])]
    if not components:
        covariates = [name for name in covariates if names.declared(name)]
    text = [name for name in rest if name not in covariates and _varies(sheet.columns[name])]
    factors: dict[str, str] = {}
    if components:
        factors = {name: _baseline(name, sheet) for name in text}
    elif not binary and not named:
        found = [name for name in text if _is_factor(sheet.columns[name])]
        factors = {name: _baseline(name, sheet) for name in found[:1]} if len(found) == 1 else {}
    return Roles(binary=binary, named=named, factors=factors, covariates=tuple(covariates))


def _holds_levels(name: str, sheet: Sheet, *, demanded: bool) -> bool:
    """True for a column of levels. ValueError where all but one cell are level words: most likely a slip."""
    cells = sheet.columns[name]
    levels = levels_of(cells) if demanded or not names.is_label(name) else None
    if levels is not None:
        return demanded or 2 * levels.count(None) <= len(levels)
    odd = [r for r, cell in enumerate(cells) if cell and cell.lower() not in LEVELS]
    if len(odd) == 1 and len(cells) > 2 and any(cell.lower() in WORDS for cell in cells):
        raise ValueError(
            f"{sheet.places[odd[0]]}: {name} is {quoted(cells[odd[0]])}, but other rows of this column are on or off; "
            f"write on or off (or 1/0, true/false, yes/no)"
        )
    return False


def _numeric(cells: Sequence[str]) -> bool:
    return any(cells) and all(is_number(cell) for cell in cells if cell)


def _varies(cells: Sequence[str]) -> bool:
    return len({cell for cell in cells if cell}) > 1


def _is_factor(cells: Sequence[str]) -> bool:
    """Text whose values come back, or that has a baseline among them."""
    values = {cell for cell in cells if cell}
    if any(is_number(cell) for cell in values) or all(len(cell) > 8 and cell[:4].isdigit() for cell in values):
        return False
    return len(values) <= MOST_VALUES and (
        2 * len(values) <= len(cells) or any(v.lower() in names.BASELINES for v in values)
    )


def _baseline(name: str, sheet: Sheet) -> str:
    values = list(dict.fromkeys(cell for cell in sheet.columns[name] if cell))
    found = [value for value in values if value.lower() in names.BASELINES]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(value[:40] for value in values[:6]) + (" ..." if len(values) > 6 else "")
    raise ValueError(
        f"column {name} has {len(values)} values ({shown}); say which of them is on with --on {name}=VALUE: it is "
        f"compared with {'the other' if len(values) == 2 else 'each other one'}"
    )


def levels(sheet: Sheet, taken: Roles) -> list[dict[str, bool]]:
    """Per row, the level of every component. Values of a factor become components of which a run has one."""
    columns: dict[str, list[bool]] = {}
    for name in taken.binary:
        columns[name] = [bool(level) for level in levels_of(sheet.columns[name]) or ()]
    for name, value in taken.named.items():
        cells = sheet.columns[name]
        others = list(dict.fromkeys(cell for cell in cells if not same(cell, value)))
        if len(others) == 1:
            columns[f"{name}={value}"] = [same(cell, value) for cell in cells]
        else:
            columns |= {f"{name}={value} instead of {other}": [cell != other for cell in cells] for other in others}
    for name, baseline in taken.factors.items():
        cells = sheet.columns[name]
        arms = [cell for cell in dict.fromkeys(cells) if cell != baseline]
        columns |= {f"{name}={arm}": [cell == arm for cell in cells] for arm in arms}
    return [{name: column[r] for name, column in columns.items()} for r in range(len(sheet.places))]


def marked(sheet: Sheet, taken: Roles) -> list[str]:
    """Columns of levels in which a mark is on and a blank is off."""
    blank = [name for name in taken.binary if "" in sheet.columns[name]]
    return [name for name in blank if None not in (levels_of(sheet.columns[name]) or [None])]


def exclusive(sheet: Sheet, taken: Roles) -> str:
    """The one index that values of a factor define: "first" around a baseline, "last" around a value that is on."""
    several = [name for name in taken.named if len(set(sheet.columns[name])) > 2]
    if several and taken.factors:
        raise ValueError(
            f"{several[0]} is compared from a value that is on and {next(iter(taken.factors))} from a baseline; take "
            f"one of the two at a time with --component and --where"
        )
    return "last" if several else "first" if taken.factors else ""


def covariate_terms(sheet: Sheet, taken: Roles) -> tuple[Floats, list[str]]:
    """(R, q) terms to be taken out beside the components, and a sentence for each covariate.

    A number is taken as a polynomial, of its logarithm where it is positive and spans a factor of four: one that goes
    through up to four values, and of degree three beyond, so that an optimum inside the range can be followed.
    """
    terms, told = [], []
    for name in taken.covariates:
        numbers = read_numbers(name, sheet.columns[name], sheet.places, sheet.decimal_comma)
        values = len(set(numbers.values))
        if values == 1:
            continue  # the rows that differed were left out
        x = np.array(numbers.values)
        log = bool((x > 0).all() and x.max() / x.min() >= 4)
        x = np.log(x) if log else x
        x = (x - x.mean()) / x.std()
        degree = min(values - 1, 3)
        terms += [x**power for power in range(1, degree + 1)]
        told.append(
            f"effects are at equal {name}: a polynomial of degree {degree} in {'its logarithm' if log else name} is "
            f"fitted beside them"
        )
    return np.array(terms, dtype=np.float64).reshape(len(terms), len(sheet.places)).T, told
