"""Fields with a range: a number or a choice is checked where it is read from a file and where it is made in Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ablate.errors import nearest
from ablate.spec.decoding import FORBID_UNKNOWN, WrongValue

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Annotation of a field that holds a number: what it may be. A number that is not finite is in no range.

    `instead`: what to do for what a value outside would have meant.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    whole: bool = False
    instead: str = ""

    def complaint(self, value: Any) -> str:
        """What is wrong with a value, behind the name of its field; "" if nothing is."""
        number = isinstance(value, int if self.whole else int | float) and not isinstance(value, bool)
        return "" if number and math.isfinite(value) and self._holds(value) else f"is {value!r}; it must be {self}"

    def _holds(self, value: float) -> bool:
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        bounds = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        text = " and ".join(f"{words} {bound:,}" for words, bound in bounds.items() if bound is not None)
        return text + (f" ({self.instead})" if self.instead else "")

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._read, handler(source))

    def _read(self, value: Any) -> Any:
        if complaint := self.complaint(value):
            raise WrongValue(f"{{}} {complaint}")
        return value


MOST = 10**15  # of anything that is counted: arithmetic with it stays exact enough in floats, and nothing needs more
Count = Annotated[int, Range(at_least=1, at_most=MOST, whole=True)]
CountOrNone = Annotated[int, Range(at_least=0, at_most=MOST, whole=True)]
Depth = Annotated[int, Range(at_least=1, at_most=10_000, whole=True)]  # of layers or modules, which are gone through
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(at_least=0)]
Share = Annotated[float, Range(at_least=0, at_most=1)]
ShareAboveNone = Annotated[float, Range(above=0, at_most=1)]
ShareBelowAll = Annotated[float, Range(at_least=0, below=1)]


FINITE_BY_RANGE = {**FORBID_UNKNOWN, "allow_inf_nan": True}  # a range refuses both, and says what is allowed


def checked(path: str) -> Callable[[type[T]], type[T]]:
    """Decorator of a keyword-only dataclass: unknown keys of a file are refused, and every field that has a range or
    is one of few words is checked before an instance exists.

    ValueError names the field behind `path`, which is its section of a preset; read from a file, the file's own path.
    """

    def decorate(cls: type[T]) -> type[T]:
        made: Any = cls
        known, initialise = limits(cls), made.__init__

        def checking(self: T, **fields: Any) -> None:
            for name, value in fields.items():
                if name in known and (complaint := known[name](value)):
                    raise ValueError(f"{path}.{name} {complaint}")
            initialise(self, **fields)

        made.__init__, made.__pydantic_config__ = checking, FINITE_BY_RANGE
        return cls

    return decorate


def limits(cls: type) -> Mapping[str, Callable[[Any], str]]:
    """Field -> what complains of a value outside its range or its choices; fields that take anything are left out."""
    hints = get_type_hints(cls, include_extras=True)
    return {name: limit for name, hint in hints.items() if (limit := _limit(hint)) is not None}


def _limit(hint: Any) -> Callable[[Any], str] | None:
    arguments = get_args(hint)
    if get_origin(hint) is Annotated:
        return next((extra.complaint for extra in arguments[1:] if isinstance(extra, Range)), None)
    if get_origin(hint) is Literal:
        return lambda value: "" if value in arguments else f"is {value!r}; {nearest(str(value), arguments)}"
    if type(None) in arguments:
        inner = next((found for each in arguments if (found := _limit(each)) is not None), None)
        return inner and (lambda value: "" if value is None else inner(value))
    return None
