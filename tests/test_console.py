"""Numbers as people read them, what the machine says of itself, and the list of components."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablate.commands.options import number, pairs
from ablate.components.listing import card, overview
from ablate.components.registry import NAMES
from ablate.doctor import examine, render
from ablate.runs.events import Ended, Interrupted, Killed, Progress, Started, Stopping
from ablate.runs.plan import make_plan
from ablate.runs.store import Store
from ablate.runs.study import Study
from ablate.sweep.console import ConsoleDisplay
from ablate.sweep.estimate import estimate
from ablate.sweep.variants import variants


@pytest.mark.parametrize(("given", "value"), [("2e12", 2e12), ("300k", 3e5), ("1.5M", 1.5e6), ("60", 60)])
def test_numbers_of_the_command_line(given: str, value: float) -> None:
    assert number(given, "--budget") == value


def test_malformed_options_say_what_they_take() -> None:
    for given in ("", "k", "3 apples"):
        with pytest.raises(ValueError, match="--budget is"):
            number(given, "--budget")
    for given in ("moe", "=coarse", "moe="):
        with pytest.raises(ValueError, match="COMPONENT=NAME"):
            pairs([given])
    assert pairs(["moe=coarse", "mla=mha"]) == {"moe": "coarse", "mla": "mha"}


def test_the_doctor_says_what_is_emulated_here() -> None:
    facts = examine()
    said = render(facts)
    assert facts["packages"]["torch"] in said
    assert max(map(len, said.splitlines())) <= 80
    assert facts["cuda"] or any("emulated" in warning for warning in facts["warnings"])


def test_every_component_is_listed_and_has_a_card() -> None:
    listed = overview()
    assert max(map(len, listed.splitlines())) <= 80
    for name in NAMES:
        assert f"{name}: " in listed
        assert card(name).startswith("# ")
    with pytest.raises(ValueError, match="did you mean 'mtp'"):
        card("mpt")


def test_what_happens_to_a_study_is_said_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    study = Study(question="?", preset="nano", disable=("mtp",), n_seeds=2)
    named, design = variants(study, study.load_preset())
    plan, _ = make_plan(study, study.load_preset(), named, design, corpus_hash="c", corpus={})
    (done, other), (third, _) = (variant.run_ids for variant in plan.variants)
    display = ConsoleDisplay()
    told = display.follow(plan, 2)
    for event in (
        Ended(done, "finished"),  # before the study was started again
        Started(other),
        Progress(other, 0, None, 0.0),
        Started(third),
        Progress(third, 3, 2.5, 100.0),
        Stopping(2),
        Killed(other, "it made no progress for 61 seconds, and was ended"),
        Interrupted(third),
    ):
        told(event)
    display.end()
    assert capsys.readouterr().err.splitlines() == [
        "stopping 2 runs with a checkpoint; Ctrl-C now ends at once",
        "full seed 1 killed: it made no progress for 61 seconds, and was ended",
        "-mtp seed 0 interrupted",
    ]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_plan_breaks_no_word_on_a_narrow_terminal(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    study = Study(question="?", preset="nano", disable=("mtp",))
    base = study.load_preset()
    named, design = variants(study, base)
    plan, runs = make_plan(study, base, named, design, corpus_hash="c", corpus={}, step_s={"full": 0.1, "-mtp": 0.1})
    display = ConsoleDisplay()
    display.console.width = width
    display.show_plan(plan, 2, Path("out"), estimate(plan, runs, Store(tmp_path), 2))
    said = capsys.readouterr().err
    assert ("parameters" in said) == (width > 90)
    row = next(line for line in said.splitlines() if line.startswith("full"))
    assert "GFLOP" in row
    assert row.endswith(" s")
    assert "…" not in said
    assert "branches of 16 % more steps" in said.replace("\n", " ").replace("  ", " ")
