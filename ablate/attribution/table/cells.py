"""What the text of a cell means: a level (on or off), a number as people write it, a number with its error."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from ablate.attribution.table.sheet import quoted

ON = ("on", "true", "t", "yes", "y", "enabled", "enable", "active", "present", "used", "with", "w/", "1", "1.0",
      "✓", "✔", "✔️", "☑", "✅", "+")  # fmt: skip
OFF = ("off", "false", "f", "no", "n", "disabled", "disable", "inactive", "absent", "unused", "without", "w/o", "0",
       "0.0", "✗", "✘", "✖", "✕", "❌", "☒", "☐", "×", "-", "–", "—")  # fmt: skip
LEVELS = {**dict.fromkeys(ON, True), **dict.fromkeys(OFF, False)}
MARKS = ("✓", "✔", "✔️", "☑", "✅", "+", "x", "•", "●", "*")  # alone in a column, a blank beside them means off
NEGATIONS = ("without ", "w/o ", "no ", "no-", "no_", "non-", "-", "disable ", "not ")
AFFIRMATIONS = ("with ", "w/ ", "+", "")

MISSING = ("n/a", "na", "#n/a", "null", "<na>", "nat")
GAPS = ("none", "--", "?")  # missing beside levels or numbers; as a text they may be a value
DASHES = ("-", "–", "—")  # missing beside numbers; beside levels they are off

CORE = r"[+-]?(?:\d[\d.,]*|[.,]\d+)(?:[eE][+-]?\d+)?"
ERROR = re.compile(rf"({CORE})(?:±|\+/-|\+-|\\pm)({CORE})|({CORE})\((\d+)\)")
THOUSANDS = r"[+-]?[1-9]\d{{0,2}}(?:{mark}\d{{3}})+"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Numbers of one column, and what was written with them."""

    values: tuple[float, ...]
    errors: tuple[float | None, ...]  # what stands behind a ± or in brackets
    resolution: float  # step of the last digit given anywhere in the column
    warning: str = ""


def levels_of(cells: Sequence[str]) -> list[bool | None] | None:
    """The level of each cell, None for a blank one; None altogether for a column that does not hold levels."""
    words = [cell.lower() for cell in cells]
    known = sorted(set(words) - {""})
    if len(known) == 1 and known[0] in MARKS and "" in words:
        return [word != "" for word in words]
    if known and all(word in LEVELS for word in known):
        return [LEVELS.get(word) for word in words]
    if len(known) == 2:
        for off, on in (known, known[::-1]):
            rests = [off.removeprefix(no) for no in NEGATIONS if off.startswith(no) and not is_number(off)]
            if any(on == yes + rest for rest in rests for yes in AFFIRMATIONS):
                return [None if word == "" else word == on for word in words]
    return None


def without_words_for_nothing(cells: Sequence[str]) -> list[str]:
    """Cells with what people write into an empty one made blank, as far as the rest of the column leaves no doubt."""
    out = ["" if cell.lower() in MISSING else cell for cell in cells]
    rest = [cell for cell in out if cell and cell.lower() not in (*GAPS, *DASHES)]
    if rest and all(is_number(cell) or is_diverged(cell) for cell in rest) and set(rest) - {"0", "1"}:
        return ["" if cell.lower() in (*GAPS, *DASHES) else cell for cell in out]
    if len({cell.lower() for cell in rest} & set(LEVELS)) == 2 and all(cell.lower() in LEVELS for cell in rest):
        return ["" if cell.lower() in GAPS else cell for cell in out]
    return out


def is_number(cell: str) -> bool:
    """True for a finite number in any of the ways people write one, with an error or a percent sign too."""
    text = _bare(cell)
    return bool(re.fullmatch(CORE, text) or ERROR.fullmatch(text))


def is_diverged(cell: str) -> bool:
    """True for what programs write for a number that is none."""
    return cell.lower().lstrip("+-") in ("nan", "inf", "infinity")


def read_numbers(name: str, cells: Sequence[str], places: Sequence[str], decimal_comma: bool) -> Measured:
    """The numbers of a column of no blanks. ValueError names the cell that cannot be read, and the cure."""
    split = []
    for cell, place in zip(cells, places, strict=True):
        found = _split(cell)
        if found is None:
            raise ValueError(
                f"{place}: {name} is {quoted(cell)}, which is not a number; write a number or take the row out"
            )
        split.append(found)
    percent = [cell.rstrip().endswith("%") or "%" in cell for cell in cells]
    if any(percent) and not all(percent):
        at = percent.index(not percent[0])
        raise ValueError(
            f"{places[at]}: {name} is {quoted(cells[at])}, and other rows {'have' if percent[0] else 'lack'} a percent "
            f"sign; write all of the column one way"
        )
    mark, doubtful = _decimal_mark([part for pair in split for part in pair if part], decimal_comma)
    values, errors, steps = [], [], []
    for (text, error), cell, place in zip(split, cells, places, strict=True):
        value = _decimal(text, mark)
        if value is None or (error and _error(error, text, mark) is None):
            raise ValueError(
                f"{place}: {name} is {quoted(cell)}, and {'a comma' if mark == ',' else 'a point'} marks the decimals "
                f"of this column; write all of the column one way"
            )
        values.append(float(value))
        errors.append(_error(error, text, mark) if error else None)
        steps.append(min(int(value.as_tuple().exponent), 0))
    warning = ""
    if doubtful:
        what = (
            "points in {} mark decimals (1.234 is 1 and a bit)" if decimal_comma else "commas in {} separate thousands"
        )
        warning = f"it is taken that {what.format(name)}; if not, write all decimals or no thousands"
    return Measured(
        values=tuple(values), errors=tuple(errors), resolution=10.0 ** min(steps, default=0), warning=warning
    )


def _bare(cell: str) -> str:
    """A number without percent sign, thousands' spaces, apostrophes and underscores, and with a plain minus."""
    text = cell.replace("\u2212", "-")
    text = re.sub(r"(?<=\d)[\s'’_](?=\d{3}(?!\d))", "", text)
    return re.sub(r"[\s%]+", "", text)


def _split(cell: str) -> tuple[str, str] | None:
    """(number, error) as text; the error is "" where there is none and "(2" where it stands in brackets."""
    text = _bare(cell)
    if re.fullmatch(CORE, text):
        return text, ""
    found = ERROR.fullmatch(text)
    if not found:
        return None
    value, error, bracketed, digits = found.groups()
    return (value, error) if value else (bracketed, "(" + digits)


def _decimal_mark(numbers: Sequence[str], decimal_comma: bool) -> tuple[str, bool]:
    """The decimal mark of a column, and whether it could as well have been the other one."""
    both = [number for number in numbers if "," in number and "." in number]
    if both:
        return max(",.", key=both[0].rfind), False
    commas = [number for number in numbers if "," in number]
    points = [number for number in numbers if "." in number]
    if not commas:
        grouped = bool(points) and all(re.fullmatch(THOUSANDS.format(mark=r"\."), number) for number in points)
        return ("," if any(number.count(".") > 1 for number in points) else "."), grouped and decimal_comma
    if any(number.count(",") > 1 for number in commas) or points:
        return ".", False
    grouped = all(re.fullmatch(THOUSANDS.format(mark=","), number) for number in commas)
    return ("." if grouped and not decimal_comma else ","), grouped and not decimal_comma


def _decimal(text: str, mark: str) -> Decimal | None:
    """A number under a decimal mark; None where its thousands are not grouped by three."""
    other = "," if mark == "." else "."
    whole = text.split(mark)[0]
    if other in text and (
        other in text[len(whole) :] or not re.fullmatch(THOUSANDS.format(mark=re.escape(other)), whole)
    ):
        return None
    plain = text.replace(other, "").replace(mark, ".")
    return Decimal(plain) if plain.count(".") <= 1 else None


def _error(error: str, value: str, mark: str) -> float | None:
    """The size of an error; in brackets it counts in the last digits of its value."""
    if not error.startswith("("):
        found = _decimal(error, mark)
        return None if found is None else float(found)
    digits = value.lower().split("e")
    decimals = len(digits[0].partition(mark)[2])
    return int(error[1:]) * 10.0 ** (int(digits[1]) if len(digits) > 1 else 0) / 10.0**decimals
