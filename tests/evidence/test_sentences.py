"""The five sentences of the answer: every number in them is one of the content's, and they turn when it turns."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import answer_study as study
import pytest

from ablate.evidence.changes.content import AnswerContent
from ablate.evidence.changes.document import document
from ablate.evidence.changes.sentences import beside, better, cheaper, far, faster, sentences
from ablate.evidence.gap import identity, path, totals
from ablate.quantities import scaled

SAVED = {"mla": 1.2, "mtp": 0.9}


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> AnswerContent:
    with pytest.MonkeyPatch.context() as patch:
        return study.answer(patch, [study.lattice(tmp_path_factory.mktemp("study") / "s", SAVED)])


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"(\d+\.\d+)", text)]


def test_there_are_five_and_each_is_one_sentence(content: AnswerContent) -> None:
    found = sentences(content)
    assert len(found) == 5
    for sentence in found:
        assert sentence.endswith(".")
        assert not re.search(r"\.\s", sentence)


def test_the_cost_is_the_identity_of_published_totals(content: AnswerContent) -> None:
    (said,) = cheaper(content)
    a, b = totals("llama3-405b"), totals("v3-671b")
    factors = identity(a, b)["factors"]
    hours = a.totals.gpu_hours / b.totals.gpu_hours
    whole, *parts = numbers(said.partition(" took ")[2])[:4]
    assert whole == pytest.approx(hours, abs=0.05)
    assert parts == [pytest.approx(factors[name]["estimate"], abs=0.005) for name in factors]
    assert math.prod(parts) == pytest.approx(hours, rel=0.01)
    step = next(step for step in path(a, b) if step["step"] == "moe on")
    assert f"moe, {step['factor']:.1f} times fewer" in said
    share = math.log(factors["flops_per_token"]["estimate"]) / math.log(hours)
    assert f"FLOPs per token are {100 * share:.0f} %" in said


def test_the_cost_names_another_factor_where_another_is_the_largest(content: AnswerContent) -> None:
    assert content.cost is not None
    factors = {name: dict(factor) for name, factor in content.cost.identity["factors"].items()}
    factors["tokens"] |= {"estimate": 50.0, "share_of_log": 0.6}
    turned = replace(content.cost, identity={**content.cost.identity, "factors": factors})
    (said,) = cheaper(replace(content, cost=turned))
    assert "of which tokens are 60 %" in said
    assert "moe" not in said


def test_speed_is_in_the_simulated_order_and_below_the_resolution_nothing_is_said(content: AnswerContent) -> None:
    (said,) = faster(content)
    up, down, left = said.split("; ")
    assert re.findall(r"(fp8|dualpipe|moe|mla) (\d\.\d\d)×", up) == [("fp8", "1.30"), ("dualpipe", "1.20")]
    assert "moe 0.50× (0.48 to 0.52) slows it down" in down
    assert left == "mla and aux-free are not resolved." or left == "aux-free and mla are not resolved."
    turned = {name: replace(s, resolved=False) for name, s in content.speeds.changes.items()}
    flat = replace(content, changes=tuple(replace(c, simulated=turned.get(c.name)) for c in content.changes))
    assert "speed it up" not in next(faster(flat))


def test_savings_are_the_planted_ones_with_their_verdicts(content: AnswerContent) -> None:
    (said,) = better(content)
    mla = next(c for c in content.changes if c.name == "mla").largest
    assert mla is not None
    assert mla.tokens is not None
    assert mla.tokens.estimate is not None
    ends = [math.exp(x) for x in (mla.tokens.estimate, mla.tokens.low, mla.tokens.high)]
    found = re.search(r"mla (\d\.\d\d)× \((\d\.\d\d) to (\d\.\d\d)\) saves tokens", said)
    assert found is not None
    assert [float(x) for x in found.groups()] == [pytest.approx(end, abs=0.005) for end in ends]
    assert re.search(r"mtp 0\.\d\d× \([^)]*\) costs tokens", said)
    assert "moe, aux-free, fp8 and distill were not measured" in said
    assert f"at {scaled(mla.parameters)} parameters" in said
    (whole,) = content.together
    assert f"{math.exp(whole.log_tokens):.2f}× in tokens and {math.exp(whole.log_flops):.2f}× in training FLOPs" in said


def test_what_was_measured_at_a_smaller_size_is_not_told_as_of_the_larger(content: AnswerContent) -> None:
    smaller = tuple(
        replace(c, sizes=tuple(replace(m, preset="nano", flops=m.flops / 10) for m in c.sizes))
        if c.name == "mtp"
        else c
        for c in content.changes
    )
    (said,) = better(replace(content, changes=smaller))
    assert "mtp was measured smaller only" in said
    assert "costs tokens" not in said


def test_models_of_one_size_are_told_from_the_smallest_to_the_largest(content: AnswerContent) -> None:
    (largest,) = {m.parameters for c in content.changes for m in c.sizes}
    dense = tuple(
        replace(c, sizes=tuple(replace(m, parameters=largest // 2) for m in c.sizes)) if c.name == "mtp" else c
        for c in content.changes
    )
    (said,) = better(replace(content, changes=dense))
    assert f"at {scaled(largest // 2)} to {scaled(largest)} parameters" in said


def test_two_sizes_are_told_with_what_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = study.lattice(tmp_path / "a", {"mla": 1.1, "mtp": 0.9})
    large = study.lattice(tmp_path / "b", {"mla": 1.3, "mtp": 0.9}, size=4.0)
    content = study.answer(monkeypatch, [small, large])
    (said,) = better(content)
    slope = next(c for c in content.changes if c.name == "mla").trend.per_decade
    assert slope is not None
    assert f"over 2 sizes a decade of compute multiplies savings, that of mla by {math.exp(slope):.2f}×" in said
    assert "3.25 M parameters" in said
    three = tuple(replace(c, trend=replace(c.trend, n_sizes=3)) if c.name == "mtp" else c for c in content.changes)
    assert "over 2 sizes" in next(better(replace(content, changes=three))), "those of the change that moves"


def test_agreement_is_told_by_name(content: AnswerContent) -> None:
    kinds = {"moe": "agrees", "mla": "disagrees"}
    changes = tuple(
        replace(c, reported=replace(c.reported, agreement=kinds.get(c.name, "cannot tell"))) for c in content.changes
    )
    (said,) = beside(replace(content, changes=changes))
    assert "these runs and papers agree on moe; these runs and papers disagree on mla; whether they agree on" in said
    assert "of the 6 changes" in said


def test_claims_end_half_a_decade_beyond_the_largest_size(content: AnswerContent) -> None:
    said, reach = far(content), content.reach
    assert reach is not None
    assert f"up to {scaled(1.8e12 * 10**0.5, 'FLOP')} a run" in said
    assert f"lies {reach.decades_beyond:.1f} decades further" in said
    assert "not known from here" in said
    inside = replace(content, reach=replace(reach, decades_beyond=-1.0))
    assert "lies within them" in far(inside)
    assert "not known" not in far(inside)


def test_without_a_study_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablate.evidence.changes.content.shipped_studies", tuple)
    content = study.answer(monkeypatch, [])
    found = sentences(content)
    assert "nothing is known, since no study" in found[2]
    assert "nothing was measured" in found[-1]
    assert all(c.reported.agreement == "cannot tell" for c in content.changes)
    assert found[3].endswith("whether they agree on mla, moe, aux-free, mtp, fp8 and distill cannot be told.")


def test_a_study_with_controls_says_nothing_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = study.lattice(tmp_path / "s", {"mtp": 0.9}, controls=("placebo",))
    content = study.answer(monkeypatch, [folder])
    assert content.studies == ()
    assert [facts.name for facts in content.calibrations] == ["s"]
    with pytest.raises(ValueError, match="given twice"):
        study.answer(monkeypatch, [folder, folder])


def test_the_document_has_the_sentences_and_finite_numbers(content: AnswerContent) -> None:
    found = document(content, content.studies[0].folder.parent / "page")
    assert found["answer"] == list(sentences(content))
    mla = next(change for change in found["changes"] if change["name"] == "mla")
    assert mla["measured"][0]["study"] == "../s"
    assert mla["measured"][0]["tokens"]["estimate"] == pytest.approx(math.log(1.2), abs=0.03)
