"""A sheet of cells -> checked runs: levels, one metric, seeds; what was left out or assumed stands in warnings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ablate.attribution.lattice import Floats
from ablate.attribution.table import names
from ablate.attribution.table.cells import without_words_for_nothing
from ablate.attribution.table.confounding import confounded, unused
from ablate.attribution.table.factors import covariate_terms, exclusive, levels, marked, roles
from ablate.attribution.table.metric import Spread, as_runs, choose, numbers, spread_of
from ablate.attribution.table.rows import canonical, check_column, filled, final, finished, where
from ablate.attribution.table.sheet import Sheet


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """What the reader of a table is told, instead of having to guess it."""

    metric: str | None = None
    seed: str | None = None
    components: tuple[str, ...] = ()
    on: tuple[str, ...] = ()  # COLUMN=VALUE that is on
    where: tuple[str, ...] = ()  # COLUMN=VALUE of the rows that count
    last: bool = False  # the final row of each run
    log: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Checked runs: levels of every component, one metric, seeds where there are any."""

    metric: str
    components: tuple[str, ...]  # those with both levels
    constant: Mapping[str, bool]  # components with one level only
    levels: tuple[Mapping[str, bool], ...]  # per run, of both kinds
    values: tuple[float, ...]
    seeds: tuple[str | None, ...]
    places: tuple[str, ...]
    resolution: float  # step of the last digit of the values
    arms: str = ""  # where components are values of one column: the index they define, see `exclusive`
    covariates: Floats = field(default_factory=lambda: np.zeros((0, 0)))  # (runs, terms)
    confounded: Mapping[str, str] = field(default_factory=dict)  # component -> unused column
    lower_is_better: bool | None = None  # where the source or the metric's name says
    warnings: tuple[str, ...] = ()


def read_table(sheet: Sheet, choices: Choices) -> Table:
    """Check a sheet. Without `components`, these are the columns that hold nothing but levels.

    ValueError, with the row: a level or number that cannot be read, a run that diverged, a missing or repeated seed,
    steps in place of runs, one run only, no component, no or several possible metrics.
    """
    columns = {name: without_words_for_nothing(cells) for name, cells in sheet.columns.items()}
    sheet = finished(where(replace(sheet, columns=columns), choices.where))
    _check_size(sheet)
    seed = _seed_column(sheet, choices)
    metric = choose(sheet, [seed] if seed else [], choices.metric)
    sheet = filled(sheet, [metric])
    spread = spread_of(sheet, metric)
    held = [name for name in (metric, seed, spread and spread.column, spread and spread.count) if name]
    steps = [name for name in sheet.columns if names.is_step(name) and name not in choices.components]
    taken = roles(sheet, [*held, *steps], choices.components, choices.on)
    sheet = filled(sheet, [name for name in taken.columns if name not in marked(sheet, taken)])
    sheet = final(sheet, [*taken.columns, *([seed] if seed else []), *_run_names(sheet, held)], last=choices.last)
    _check_size(sheet)
    rows = levels(sheet, taken)
    varying = tuple(name for name in rows[0] if len({row[name] for row in rows}) == 2)
    if not varying:
        raise ValueError(_no_component(sheet, list(rows[0]), held, choices))
    terms, told = covariate_terms(sheet, taken)
    idle = unused(sheet, [*held, *taken.columns])
    found = confounded(sheet, idle, [{name: row[name] for name in varying} for row in rows])
    constant = {name: rows[0][name] for name in rows[0] if name not in varying}
    warnings = [*_confounded_warnings(found), *sheet.warnings, *_idle_warning(idle), *told]
    warnings += [f"a blank in {name} is taken as off" for name in marked(sheet, taken)]
    warnings += [f"column {name} is {'on' if level else 'off'} in every row, so it has no effect to estimate"
                 for name, level in constant.items()]  # fmt: skip
    direction = sheet.directions.get(metric, names.lower_is_better(metric))
    table = Table(
        metric=metric, components=varying, constant=constant, levels=tuple(rows), values=(), seeds=(),
        places=tuple(sheet.places), resolution=0.0, covariates=terms, confounded=found, lower_is_better=direction,
        warnings=tuple(warnings), arms=exclusive(sheet, taken),
    )  # fmt: skip
    return _with_values(table, sheet, seed, spread, log=choices.log)


def _check_size(sheet: Sheet) -> None:
    count = len(sheet.places)
    if count < 2:
        lost = "".join(f"; {warning}" for warning in sheet.warnings)
        raise ValueError(f"the table has {count} run{'s' * (count != 1)}; an effect compares at least two{lost}")


def _with_values(table: Table, sheet: Sheet, seed: str | None, spread: Spread | None, *, log: bool) -> Table:
    measured = numbers(sheet, table.metric, log=log)
    warnings = [*table.warnings, *([measured.warning] if measured.warning else [])]
    values, resolution = measured.values, measured.resolution
    seeds, reruns = _seeds(sheet, seed, table)
    warnings += reruns
    if spread is not None:
        at, runs = as_runs(sheet, measured, spread)
        warnings.append("rows are means: their runs are taken as independent, since pairs of one seed cannot be told")
        table = replace(
            table, levels=tuple(table.levels[r] for r in at), places=tuple(table.places[r] for r in at),
            covariates=table.covariates[at],
        )  # fmt: skip
        values, seeds = tuple(runs), (None,) * len(runs)
    elif any(error is not None for error in measured.errors):
        warnings.append(
            f"what is behind ± in {table.metric} is not used: add a column n with the number of runs, and its spread "
            f"is taken as their standard deviation"
        )
    if log:
        resolution /= min(values)
        values = tuple(math.log(value) for value in values)
    table = replace(table, values=values, seeds=seeds, resolution=resolution, warnings=tuple(warnings))
    _refuse_repeats(table, sheet)
    return table


def _seed_column(sheet: Sheet, choices: Choices) -> str | None:
    """The column of seeds: the one named, else the one of which the name says so."""
    if choices.seed is not None:
        check_column(choices.seed, sheet, "--seed")
        return choices.seed
    named = [name for name in sheet.columns if names.is_seed(name) and any(sheet.columns[name])]
    named = [name for name in named if name not in choices.components and name.lower() not in names.SIZES]
    varying = [name for name in named if len(set(sheet.columns[name])) > 1] or named[:1]
    by_name = [name for name in varying if "seed" in name.lower()] or varying
    alike = {tuple(map(sheet.columns[name].index, sheet.columns[name])) for name in by_name}
    if len(alike) > 1:
        raise ValueError(f"several columns look like seeds ({', '.join(by_name)}); name one with --seed")
    return by_name[0] if by_name else None


def _run_names(sheet: Sheet, held: Sequence[str]) -> list[str]:
    """Columns that name runs, so that rows of two names are never steps of one run."""
    clocks = {"created", "date", "timestamp", "time"}
    return [
        name for name in sheet.columns
        if name not in held and names.is_label(name) and not clocks & set(names.words(name))
    ]  # fmt: skip


def _no_component(sheet: Sheet, found: Sequence[str], held: Sequence[str], choices: Choices) -> str:
    if found:
        return f"{', '.join(found)} never change in this table, so there is nothing to compare; add runs of both levels"
    others = [name for name in sheet.columns if name not in held]
    two = [name for name in others if len({cell for cell in sheet.columns[name] if cell}) == 2]
    if two:
        value = next(cell for cell in sheet.columns[two[0]] if cell)
        hint = f"{two[0]} has two values: say which is on, as in --on {two[0]}={value}"
        return f"no column holds only on/off, true/false or 1/0; {hint}"
    columns = f"of {', '.join(others)} none holds" if others else "there is no other column that holds"
    return (
        f"no component column: {columns} only on/off, true/false or 1/0; add one column per component, or name one of "
        f"several values with --component"
    )


def _confounded_warnings(found: Mapping[str, str]) -> list[str]:
    return [
        f"{component} is confounded with {column}, which changes together with it: nobody can tell which of the two "
        f"made the difference; run them apart, choose rows with --where, or take {column} in with --component"
        for component, column in found.items()
    ]


def _idle_warning(idle: Sequence[str]) -> list[str]:
    if not idle:
        return []
    return [f"not used although they vary: {', '.join(idle)}; where one of them moves the metric, effects carry it"]


def _seeds(sheet: Sheet, seed: str | None, table: Table) -> tuple[tuple[str | None, ...], list[str]]:
    """Seed of every row, and a warning where one seed was run again and again, which tells no runs apart."""
    none = (None,) * len(sheet.places)
    if seed is None or not any(sheet.columns[seed]):
        return none, []
    for text, place in zip(sheet.columns[seed], sheet.places, strict=True):
        if not text:
            raise ValueError(f"{place} has no seed, but other rows have one; give every row its seed or none")
    found = tuple(canonical(text) for text in sheet.columns[seed])
    variants = {tuple(row.values()) for row in table.levels}
    if len(set(found)) == 1 and len(found) > len(variants):
        return none, [
            f"{seed} is {found[0]} in every row: rows of a variant are taken as independent reruns, and where they "
            f"truly share that seed, the intervals leave out how an effect changes from seed to seed"
        ]
    return found, []


def _refuse_repeats(table: Table, sheet: Sheet) -> None:
    first: dict[tuple[tuple[bool, ...], str], int] = {}
    for r, (row, seed, place) in enumerate(zip(table.levels, table.seeds, table.places, strict=True)):
        if seed is None or table.covariates.size:
            continue
        key = (tuple(row.values()), seed)
        if key in first:
            differ = [n for n, cells in sheet.columns.items() if cells[r] != cells[first[key]] and n != table.metric]
            settings = [n for n in differ if not (names.is_result(n) or names.is_label(n) or names.is_step(n))]
            cure = "so remove one or correct its seed"
            if settings:
                value = f"{settings[0]}={sheet.columns[settings[0]][r]}"
                cure = f"and these differ in {settings[0]}: choose with --where {value}, or take it in with --component"
            raise ValueError(
                f"{place} repeats seed {seed} of the variant in {table.places[first[key]]}; a variant has one run per "
                f"seed, {cure}"
            )
        first[key] = r
