"""Numbers as people read them, what the machine says of itself, and the list of components."""

from __future__ import annotations

import pytest

from ablate.cli import _number, _pairs
from ablate.components.listing import card, overview
from ablate.components.registry import NAMES
from ablate.doctor import examine, render
from ablate.sweep.console import duration, quantity


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (45, "45 s"), (320, "5 min 20 s"), (3900, "1 h 05 min"), (3 * 86400, "3 days")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(("value", "said"), [(12, "12"), (12_300, "12.3 k"), (4.62e11, "462 G"), (1.2e24, "1.2 Y")])
def test_quantities(value: float, said: str) -> None:
    assert quantity(value) == said


@pytest.mark.parametrize(("given", "value"), [("2e12", 2e12), ("300k", 3e5), ("1.5M", 1.5e6), ("60", 60)])
def test_numbers_of_the_command_line(given: str, value: float) -> None:
    assert _number(given, "--budget") == value


def test_malformed_options_say_what_they_take() -> None:
    for given in ("", "k", "3 apples"):
        with pytest.raises(ValueError, match="--budget is"):
            _number(given, "--budget")
    for given in ("moe", "=coarse", "moe="):
        with pytest.raises(ValueError, match="COMPONENT=NAME"):
            _pairs([given])
    assert _pairs(["moe=coarse", "mla=mha"]) == {"moe": "coarse", "mla": "mha"}


def test_the_doctor_says_what_is_emulated_here() -> None:
    facts = examine()
    said = render(facts)
    assert facts["packages"]["torch"] in said
    assert facts["cuda"] or any("emulated" in warning for warning in facts["warnings"])


def test_every_component_is_listed_and_has_a_card() -> None:
    listed = overview()
    for name in NAMES:
        assert f"{name}: " in listed
        assert card(name).startswith("# ")
    with pytest.raises(ValueError, match="did you mean 'mtp'"):
        card("mpt")
