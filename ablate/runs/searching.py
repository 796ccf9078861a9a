"""The tables `[tuning]` and `[search]` of a study file: which settings are tried, how often, judged by what."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from ablate.spec.decoding import FORBID_UNKNOWN
from ablate.spec.ranges import Range, ShareAboveNone, checked

Objective = Literal["loss", "seconds", "tokens_per_s", "memory", "flops_per_token"]
Sampler = Literal["tpe", "nsga2", "random", "qmc", "grid"]
Pruner = Literal["none", "median", "halving"]
Value = str | int | float | bool

MAXIMISED = ("tokens_per_s",)
# Screening and search run on seeds from here on: those of a study (at most MOST["n_seeds"]) are fresh ones beside them.
FIRST_SEED = 10_000
FILE_STORAGES = ("sqlite:", "journal:")
SERVERS = ("postgresql:", "postgresql+psycopg:")
PASSWORD = re.compile(r"(?<=://)([^/@:]*)(:[^/]*)?@")
SECRET_QUERY = re.compile(r"(?i)[?&](password|passfile|sslpassword|sslkey)=[^&]*")


@checked("tuning")
@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """How the learning rate of each variant is found before the study: stage one of two."""

    trials: Annotated[int, Range(at_least=3, at_most=99, whole=True)] = 5  # rates of each variant that is screened
    octaves: Annotated[float, Range(above=0, at_most=8)] = 1.5  # on either side of the shared rate
    budget_share: ShareAboveNone = 1.0  # of a run's budget, for a screening run
    variants: Annotated[int, Range(at_least=2, at_most=10_000, whole=True)] | None = (
        None  # screened; default: see README
    )
    shared: bool = True  # run the whole design at the shared rate too
    storage: str = field(default="", repr=False)  # where Optuna's dashboard finds the trials; default: in the folder

    def __post_init__(self) -> None:
        check_storage(self.storage, "tuning")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """The values that a field of the preset may take: a range, or choices. A field of whole numbers gets whole ones."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    step: int | float | None = None
    choices: tuple[Value, ...] = ()
    points: int | None = None  # of a range, for the sampler `grid`

    __pydantic_config__: ClassVar[Any] = FORBID_UNKNOWN

    def complaint(self) -> str:
        """What is wrong with it, behind its name; "" if nothing is."""
        if self.choices:
            given = [n for n in ("low", "high", "step", "points") if getattr(self, n) is not None]
            repeated = len(set(map(repr, self.choices))) < len(self.choices)
            if given or self.log:
                return f"has choices and {(*given, 'log')[0]} too; give a range or choices"
            return "names a choice twice" if repeated else ""
        if self.low is None or self.high is None:
            return "needs low and high, or choices"
        if not self.low < self.high:
            return f"has low {self.low} and high {self.high}; low must be the smaller one"
        if self.log and self.low <= 0:
            return f"has low {self.low} and log = true; a range in octaves begins above 0"
        if self.step is not None and (self.log or self.step <= 0):
            return f"has step {self.step}; it must be above 0, and has no meaning with log = true"
        if self.points is not None and not 2 <= self.points <= 1000:
            return f"has points {self.points}; a grid needs 2 to 1,000 of a range"
        return ""


@checked("search")
@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """A search: settings of each variant (equal trials for all), or the variant and its settings together."""

    parameters: Mapping[str, Parameter]  # path of a preset's field -> what it may be
    over: Literal["variants", "whole"] = "variants"
    sampler: Sampler = "tpe"
    objectives: tuple[Objective, ...] = ("loss",)
    trials: Annotated[int, Range(at_least=1, at_most=10_000, whole=True)] = (
        20  # of each variant; over the whole: in all
    )
    pruner: Pruner = "none"
    rungs: tuple[float, ...] = (
        0.25,
    )  # shares of the budget at which a trial may be pruned: decayed runs of that length
    workers: Annotated[int, Range(at_least=1, at_most=1000, whole=True)] | None = None  # runs at a time; else as --jobs
    warm_start: bool = True  # try the other variants' best settings too, half-way through the trials
    confirm_seeds: Annotated[int, Range(at_least=2, at_most=10_000, whole=True)] | None = None  # default: n_seeds
    storage: str = field(default="", repr=False)  # default: SQLite in the folder; postgresql://..., journal:PATH

    def __post_init__(self) -> None:
        if not self.parameters:
            raise ValueError('search.parameters is empty; name a field, for example "trainer.learning_rate"')
        for name, parameter in self.parameters.items():
            if complaint := parameter.complaint():
                raise ValueError(f"search.parameters.{name} {complaint}")
        if len(set(self.objectives)) < len(self.objectives) or not self.objectives:
            raise ValueError(f"search.objectives is {list(self.objectives)}; give at least one, each once")
        if self.pruner != "none" and self.objectives != ("loss",):
            raise ValueError(
                f"search.pruner is {self.pruner!r} and search.objectives {list(self.objectives)}; a trial is "
                'pruned by its loss alone: take objectives = ["loss"] or pruner = "none"'
            )
        if self.sampler == "nsga2" and self.pruner != "none":
            raise ValueError('search.pruner has no use with sampler "nsga2"; take pruner = "none"')
        for before, share in zip((0.0, *self.rungs), self.rungs, strict=False):
            if not before < share < 1:
                raise ValueError(f"search.rungs is {list(self.rungs)}; they are increasing shares between 0 and 1")
        if self.sampler == "grid":
            self._check_grid()
        check_storage(self.storage, "search")

    def _check_grid(self) -> None:
        for name, parameter in self.parameters.items():
            if not parameter.choices and parameter.points is None and parameter.step is None:
                raise ValueError(f"search.parameters.{name} has no points; the sampler grid needs them of a range")

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of the budget that a trial is trained for, one run after the other; the last is the whole."""
        return (*(self.rungs if self.pruner != "none" else ()), 1.0)


def check_storage(storage: str, table: str) -> None:
    """ValueError for an address that is none of a storage; it is not repeated, since a password may be in it."""
    if storage and not storage.startswith((*FILE_STORAGES, *SERVERS)):
        raise ValueError(
            f"{table}.storage is no address of a storage; give sqlite:///FILE, journal:FILE or "
            "postgresql://HOST/DATABASE"
        )


def without_password(address: str) -> str:
    """An address as it may be shown and written; libpq finds the password in PGPASSWORD or ~/.pgpass as well."""
    shown = SECRET_QUERY.sub("", PASSWORD.sub(lambda found: f"{found[1]}@", address))
    return shown if "?" in shown else shown.replace("&", "?", 1)


def password_of(address: str) -> str:
    """The password in an address, or ""."""
    found = PASSWORD.search(address)
    return found[2][1:] if found and found[2] else ""


def plain(table: Tuning | Search | Parameter) -> dict[str, Any]:
    """A table as plain data without its defaults, and without a password."""
    found: dict[str, Any] = {}
    for f in dataclasses.fields(table):
        value = getattr(table, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if value is None or value == default:
            continue
        if f.name == "storage":
            value = without_password(value)
        elif f.name == "parameters":
            value = {name: plain(each) for name, each in value.items()}
        found[f.name] = list(value) if isinstance(value, tuple) else value
    return found
