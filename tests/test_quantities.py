"""Numbers as people read them."""

from __future__ import annotations

import pytest

from ablate import quantities as q


def test_fixed_decimals_have_a_real_minus_and_no_negative_zero() -> None:
    assert (q.number(-0.00001), q.signed(0.0), q.signed(-0.00001), q.signed(0.00012)) == (
        "0.0000",
        "0.0000",
        "0.0000",
        "+0.0001",
    )
    assert (q.number(-1234.5, 1), q.whole(1234.5), q.signed(-0.5, 1)) == ("−1,234.5", "1,234", "−0.5")
    assert (q.between(1.0, 2.0, 1), q.signed_between(-1.0, 2.0, 1)) == ("1.0 to 2.0", "−1.0 to +2.0")


def test_what_there_is_not_is_a_dash() -> None:
    said = [f(None) for f in (q.number, q.whole, q.signed, q.significant, q.scaled, q.memory, q.duration, q.percent)]
    assert {*said, q.times(None), q.between(None, 2.0), q.signed_between(1.0, None)} == {q.NONE}


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0.00"), (0.04671, "0.0467"), (0.15, "0.150"), (9.999, "10.0"), (45.32, "45.3"), (12_500, "12,500"),
     (-0.0999, "−0.0999")],
)  # fmt: skip
def test_three_significant_digits(value: float, said: str) -> None:
    assert q.significant(value) == said


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [(0, "", "0"), (12, "", "12"), (12.3, "", "12.3"), (999, "", "999"), (999.6, "", "1.00 k"), (12_300, "", "12.3 k"),
     (999_999, "", "1.00 M"), (671e9, "", "671 B"), (14.8e12, "", "14.8 T"), (-2.5e6, "", "−2.50 M"),
     (4.62e11, "FLOP", "462 GFLOP"), (1e12, "FLOP", "1.00 TFLOP"), (1.2e24, "FLOP", "1.20 YFLOP"),
     (4.8e12, "B/s", "4.80 TB/s"), (45, "B/s", "45 B/s")],
)  # fmt: skip
def test_prefixes_are_those_of_the_unit_or_of_a_count(value: float, unit: str, said: str) -> None:
    assert q.scaled(value, unit) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.005, "0.005"), (3e-3, "0.003"), (3e-5, "3e-5"), (-3e-5, "−3e-5"), (60, "60"), (0.1, "0.1"), (9_999, "9999"),
     (36_000, "36,000"), (3e6, "3.00 M")],
)  # fmt: skip
def test_settings_have_no_trailing_zeros(value: float, said: str) -> None:
    assert q.short(value) == said


@pytest.mark.parametrize(
    ("n_bytes", "said"),
    [(12, "12 B"), (1023.6, "1.00 KiB"), (1536, "1.50 KiB"), (3 * 2**30, "3.00 GiB"), (1272 * 2**30, "1,272 GiB")],
)
def test_memory(n_bytes: float, said: str) -> None:
    assert q.memory(n_bytes) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (45, "45 s"), (59.7, "1 min 00 s"), (320, "5 min 20 s"), (3599.7, "1 h 00 min"),
     (3900, "1 h 05 min"), (7199, "2 h 00 min"), (3 * 86400, "3 days")],
)  # fmt: skip
def test_durations_carry_over(seconds: float, said: str) -> None:
    assert q.duration(seconds) == said


def test_shares_ratios_and_times() -> None:
    assert (q.percent(0.95), q.percent(0.9), q.percent(1.0), q.percent(0.41234, 3)) == (
        "95 %",
        "90 %",
        "100 %",
        "41.2 %",
    )
    assert (q.times(1.25), q.milliseconds(0.0001234), q.milliseconds(12.5)) == ("1.250×", "0.123", "12,500")


@pytest.mark.parametrize(
    ("amount", "match", "said"),
    [(1.8e12, "flops", "1.80 TFLOP"), (3e5, "tokens", "300 k tokens"), (60, "seconds", "60 s"),
     (36_000, "seconds", "36,000 s")],
)  # fmt: skip
def test_a_budget_is_in_the_unit_of_what_is_matched(amount: float, match: str, said: str) -> None:
    assert q.budget(amount, match) == said


def test_words() -> None:
    assert (q.plural(1, "run"), q.plural(1200, "run")) == ("1 run", "1,200 runs")
    assert [q.listed("abc"[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
