"""Numbers as people read them: the one formatter of reports, terminals and messages, so that no two can disagree.

Negative numbers have a real minus sign, thousands are separated by commas, and what there is not is an en dash.
Programs get their numbers from JSON, never from these texts.
"""

from __future__ import annotations

from collections.abc import Iterable

NONE = "–"  # a number that there is not
SI_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")  # before a unit: 1.23 GFLOP
COUNT_SUFFIXES = ("", "k", "M", "B", "T")  # of a bare count, as the field writes parameters and tokens: 671 B


def number(value: float | None, decimals: int = 4) -> str:
    """The value with fixed decimals, and without a minus sign where it rounds to zero."""
    if value is None:
        return NONE
    text = f"{value:,.{decimals}f}"
    if not text.strip("-0.,"):
        text = text.lstrip("-")
    return text.replace("-", "−")


def whole(value: float | None) -> str:
    """The value rounded to a whole number."""
    return number(value, 0)


def signed(value: float | None, decimals: int = 4) -> str:
    """A difference: as `number`, with a plus sign where it is positive."""
    text = number(value, decimals)
    return text if value is None or text.startswith("−") or not text.strip("0.,") else f"+{text}"


def between(low: float | None, high: float | None, decimals: int = 4) -> str:
    """An interval or a range."""
    return NONE if low is None or high is None else f"{number(low, decimals)} to {number(high, decimals)}"


def signed_between(low: float | None, high: float | None, decimals: int = 4) -> str:
    """An interval of a difference."""
    return NONE if low is None or high is None else f"{signed(low, decimals)} to {signed(high, decimals)}"


def significant(value: float | None) -> str:
    """Three significant digits, trailing zeros included, never in powers of ten: 0.0467, 1.20, 45.3, 12,500."""
    if value is None:
        return NONE
    exponent = int(f"{value:.2e}".partition("e")[2])
    return number(value, max(0, 2 - exponent))


def short(value: float, digits: int = 4) -> str:
    """A setting, such as a margin or a learning rate: significant digits without trailing zeros, as 0.005 or 3e-5."""
    if abs(value) >= 1e6:
        return scaled(value)
    if abs(value) >= 10**digits:
        return whole(value)
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return mantissa.replace("-", "−") + (f"e{int(exponent)}" if exponent else "")


def scaled(value: float | None, unit: str = "") -> str:
    """Three significant digits and a decimal prefix: 1.23 M, 4.50 GFLOP; whole numbers below a thousand as they are."""
    if value is None:
        return NONE
    prefixes = SI_PREFIXES if unit else COUNT_SUFFIXES
    power = 0
    while power < len(prefixes) - 1 and abs(value) >= 999.5:
        value, power = value / 1000, power + 1
    text = whole(value) if power == 0 and value == int(value) else significant(value)
    return f"{text} {prefixes[power]}{unit}".rstrip()


def memory(n_bytes: float | None) -> str:
    """Bytes in three significant digits of B, KiB, MiB or GiB."""
    if n_bytes is None:
        return NONE
    units = ("B", "KiB", "MiB", "GiB")
    power = 0
    while power < len(units) - 1 and abs(n_bytes) >= 1023.5:
        n_bytes, power = n_bytes / 1024, power + 1
    return f"{significant(n_bytes) if power else whole(n_bytes)} {units[power]}"


def duration(seconds: float | None) -> str:
    """Seconds as 45 s, 5 min 20 s, 3 h 05 min or 12 days."""
    if seconds is None:
        return NONE
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02} s"
    minutes = round(seconds / 60)
    if minutes < 2 * 1440:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{seconds / 86400:,.0f} days"


def milliseconds(seconds: float) -> str:
    """A measured time as milliseconds without their unit, for columns that name it."""
    return significant(1000 * seconds)


def percent(share: float | None, digits: int = 4) -> str:
    """A share of one, in significant digits without trailing zeros: 95 %, 41.2 %."""
    return NONE if share is None else f"{short(100 * share, digits)} %"


def times(ratio: float | None) -> str:
    """A ratio: 1.250×."""
    return NONE if ratio is None else f"{number(ratio, 3)}×"


def budget(amount: float, match: str) -> str:
    """What every run of a study is given, in the unit of what is matched: FLOPs, tokens or seconds."""
    if match == "flops":
        return scaled(amount, "FLOP")
    return f"{scaled(amount)} tokens" if match == "tokens" else f"{short(amount)} s"


def plural(n: int, noun: str) -> str:
    """1 run, 2 runs."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def listed(items: Iterable[str]) -> str:
    """a, b and c."""
    items = list(items)
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
