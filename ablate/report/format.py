"""Numbers and texts as a report prints them: one way for every renderer, so that no two can disagree."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

NONE = "–"  # nothing to say
MAX_TEXT = 2000  # characters of one text that came from outside


def number(value: float | None, digits: int = 4) -> str:
    """Fixed decimals with thousands separated; a real minus sign, and no minus before a zero."""
    if value is None:
        return NONE
    text = f"{value:,.{digits}f}"
    if not text.strip("-0.,"):
        text = text.lstrip("-")
    return text.replace("-", "−")


def signed(value: float | None, digits: int = 4) -> str:
    """The same with a plus sign: for differences."""
    text = number(value, digits)
    return text if value is None or text.startswith("−") or not text.strip("0.,") else f"+{text}"


def between(low: float | None, high: float | None, digits: int = 4) -> str:
    return NONE if low is None or high is None else f"{number(low, digits)} to {number(high, digits)}"


def signed_between(low: float | None, high: float | None, digits: int = 4) -> str:
    return NONE if low is None or high is None else f"{signed(low, digits)} to {signed(high, digits)}"


def scaled(value: float | None, unit: str = "") -> str:
    """Three significant digits and a decimal prefix: 1.23 M, 4.5 GFLOP; plain below a thousand."""
    if value is None:
        return NONE
    prefixes = ("", "k", "M", "G", "T", "P", "E") if unit else ("", "k", "M", "B", "T")
    power = 0
    while power < len(prefixes) - 1 and abs(value) >= 999.5:
        value, power = value / 1000, power + 1
    text = number(value, 0 if power == 0 and value == int(value) else _decimals(value))
    return f"{text} {prefixes[power]}{unit}".rstrip()


def memory(n_bytes: float | None) -> str:
    """Bytes as KiB, MiB or GiB."""
    if n_bytes is None:
        return NONE
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n_bytes) < 1023.5 or unit == "GiB":
            return f"{number(n_bytes, 0 if unit == 'B' else _decimals(n_bytes))} {unit}"
        n_bytes /= 1024
    raise AssertionError


def whole(value: float | None) -> str:
    return NONE if value is None else number(value, 0)


def short(value: float) -> str:
    """Four significant digits, no trailing zeros: for settings such as a margin or a learning rate."""
    return f"{value:.4g}".replace("-", "−") if abs(value) < 1e6 else scaled(value)


def percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def times(ratio: float | None) -> str:
    return NONE if ratio is None else f"{number(ratio, 3)}×"


def plural(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def listed(items: Iterable[str]) -> str:
    """a, b and c."""
    items = list(items)
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def clean(text: object) -> str:
    """A text from a file as one printable line: control characters (terminal escapes too) and line ends are spaces."""
    kept = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in str(text))
    kept = " ".join(kept.split())
    return kept if len(kept) <= MAX_TEXT else kept[: MAX_TEXT - 1] + "…"


def shortened(text: str, n: int) -> str:
    return text if len(text) <= n else text[: n - 1] + "…"


def _decimals(value: float) -> int:
    """For three significant digits."""
    size = abs(value)
    return 2 if size < 9.995 else 1 if size < 99.95 else 0
