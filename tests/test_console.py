"""Numbers as people read them, what the machine says of itself, and the list of components."""

from __future__ import annotations

import pytest

from ablate.cli import _number, _pairs
from ablate.components.listing import card, overview
from ablate.components.registry import NAMES
from ablate.doctor import examine, render


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
