"""Sentences on hand-made studies where a report could say too much: nothing decided, lost runs, one seed, all harms."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_study as fake
import pytest
from synthetic_study import planted

from ablate.attribution.study.compare import StudyResult
from ablate.attribution.verdicts import GAIN, HARM, NO_EFFECT, NOT_RESOLVED
from ablate.report import ReportContent, build, sentences
from ablate.report.answer import answer
from ablate.report.captions import captions
from ablate.report.curves import Curve, CurvePoint, Gap, GapPoint
from ablate.report.figures.effects import Row, rows
from ablate.report.html import render

RESULT: Any = SimpleNamespace(plan=SimpleNamespace(interval_confidence=0.95, margin_nats=0.005))


def row(name: str, estimate: float, low: float | None, high: float | None, verdict: str) -> Row:
    return Row(name=name, verdict=verdict, estimate=estimate, low=low, high=high)


FORESTS = {
    "Every 95 % interval holds 0; the estimates lie between −0.002 and +0.004.": [
        row("a", -0.002, -0.01, 0.02, NOT_RESOLVED), row("b", 0.004, -0.003, 0.02, NOT_RESOLVED)],
    "Every 95 % interval leaves out 0; the largest harm: b (+0.300).": [
        row("a", 0.1, 0.05, 0.15, HARM), row("b", 0.3, 0.1, 0.5, HARM)],
    # The furthest estimate is not the largest gain: its interval is huge.
    "The 95 % interval of 1 of 2 effects leaves out 0; the largest gain: b (−0.100).": [
        row("a", -0.5, -2.0, 1.0, NOT_RESOLVED), row("b", -0.1, -0.2, -0.05, GAIN)],
    "The 95 % intervals of 2 of 3 effects leave out 0; the largest gain: a (−0.100); the largest harm: c (+0.030).": [
        row("a", -0.1, -0.2, -0.05, GAIN), row("b", 0.0, -0.1, 0.1, NOT_RESOLVED), row("c", 0.03, 0.002, 0.058,
        NOT_RESOLVED)],
    # Alone it would be a harm; the correction for several leaves it open.
    "The 95 % interval of 1 of 2 effects leaves out 0; after Holm's correction 1 of them is not resolved; the "
    "estimates lie between 0.000 and +0.030.": [
        row("a", 0.0, -0.1, 0.1, NOT_RESOLVED), row("b", 0.03, 0.006, 0.054, NOT_RESOLVED)],
    "Every 95 % interval leaves out 0; the estimates lie between −0.002 and +0.002.": [
        row("a", -0.002, -0.003, -0.001, NO_EFFECT), row("b", 0.002, 0.001, 0.003, NO_EFFECT)],
    "No interval is known; the estimate is +0.010.": [row("a", 0.01, None, None, NOT_RESOLVED)],
    "Every 95 % interval leaves out 0, and 1 effect has no interval; the largest harm: b (+0.300).": [
        row("a", 0.1, None, None, NOT_RESOLVED), row("b", 0.3, 0.1, 0.5, HARM)],
}  # fmt: skip


@pytest.mark.parametrize("wanted", FORESTS)
def test_the_forest_calls_gain_and_harm_what_its_verdicts_do(wanted: str) -> None:
    assert sentences.of_forest(FORESTS[wanted], RESULT) == wanted


def study(folder: Path, records: list[Any], **plan: Any) -> ReportContent:
    return build(fake.write_study(folder / "s", fake.plan(**plan), records))


def said(content: ReportContent) -> str:
    assert render(content)
    return " ".join([*content.answer, *captions(content)["see"].values()])


def no_winner(text: str) -> bool:
    return not re.search(r"\b(gain|harm|lowers|raises)\b", text)


def test_one_seed_gives_no_winner_and_says_why(tmp_path: Path) -> None:
    text = said(study(tmp_path, fake.records(fake.WITH_LOSSES[:1], fake.WITHOUT_LOSSES[:1]), seeds=[0]))
    assert no_winner(text)
    assert "one seed gives no interval" in text
    assert "same sign" not in text


def test_a_huge_interval_gives_no_winner_and_names_what_is_excluded(tmp_path: Path) -> None:
    content = study(tmp_path, fake.records((3.2, 5.0, 1.0, 9.0, 2.0), fake.WITHOUT_LOSSES))
    text = said(content)
    assert no_winner(text)
    assert "The 95 % interval holds 0; the estimate is +0.790." in text
    assert "below −3.1385 or above +4.7176" in text


def test_a_variant_that_diverges_is_named_first_and_missing_from_figures_by_name(tmp_path: Path) -> None:
    lost = [
        dataclasses.replace(r, status="diverged", metrics={}, curve=(), reason="x") if r.variant["mtp"] != "on" else r
        for r in fake.records()
    ]
    content = study(tmp_path, lost)
    assert content.answer[0] == "Diverged: -mtp (5 of 5 runs)."
    assert "because seeds 0, 1, 2, 3 and 4 of -mtp diverged." in said(content)
    assert "Not drawn, without a finished run: -mtp." in captions(content)["see"]["tokens"]
    assert no_winner(said(content))


def of_result(result: StudyResult) -> str:
    return " ".join([*answer(result), sentences.of_forest(rows(result), result)])


def test_a_lost_effect_does_not_hide_the_correction_of_the_others() -> None:
    text = of_result(planted("leave-one-out", lambda v, s: "diverged" if v.name == "-mla" else "finished").result)
    assert "Holm's correction over 5" in text
    assert "mla (no interval, because seeds 0, 1, 2 and 3 of -mla diverged)" in text


def test_what_went_along_is_named_beside_its_effect() -> None:
    text = of_result(planted("leave-one-out").result)
    assert "moe with aux-free (" in text


@pytest.mark.parametrize("seed", range(4))
def test_where_no_verdict_is_reached_no_sentence_names_a_winner(seed: int) -> None:
    result = planted("leave-one-out", run_sd=0.08, seed=seed).result
    if all(c.loss.verdict == NOT_RESOLVED for c in result.comparisons):
        found = sentences.of_forest(rows(result), result)
        decided = ("gain" in found) + ("harm" in found)
        assert decided == any("perhaps" in part for part in of_result(result).split(";")), found


def line(name: str, n: int, loss: float = 3.0) -> Curve:
    points = tuple(CurvePoint(step=k, n_tokens=k, flops=k, mean=loss, low=loss, high=loss, n=1) for k in range(n))
    return Curve(variant=name, points=points, decay_start_tokens=None, tokens_per_s=None)


@pytest.mark.parametrize(
    ("other", "where"), [(2.9, "below it"), (3.1, "above it"), (3.0 - 1e-4, "at the same"), (3.0, "at the same")]
)
def test_variants_that_compute_the_same_end_at_the_same_loss(other: float, where: str) -> None:
    result = planted("one", disable=("mtp",)).result
    said = sentences.of_curves([line("full", 20), line("-mtp", 20, other)], result)
    assert said == f"full ends at 3.000 nats per token, and the other variant {where}."


def test_a_line_that_is_shorter_is_not_said_of_all() -> None:
    result = planted("one", disable=("mtp",)).result
    text = sentences.of_curves([line("full", 20), line("-mtp", 4)], result)
    assert text.endswith("The shortest line has only 4 evaluations.")
    assert sentences.of_curves([line("full", 4), line("-mtp", 4)], result).endswith("Each line has only 4 evaluations.")


def test_one_evaluation_shows_no_course() -> None:
    def gap(*means: float) -> Gap:
        return Gap(name="a", variant="a", points=tuple(GapPoint(share=1, mean=m, low=m, high=m) for m in means))

    assert sentences.of_gaps([gap(0.1)]) == ""
    assert sentences.of_gaps([gap(0.1, 0.2)]) == "The difference had the same sign at every evaluation."
    assert sentences.of_gaps([gap(0.1, -0.2)]) == "The difference changed its sign."
    assert sentences.of_gaps([gap(0.1, -0.2), gap(1, 2)]) == "1 of 2 differences had the same sign at every evaluation."


def test_trends_are_named_where_their_interval_leaves_out_zero() -> None:
    def ladder(name: str, low: float | None, high: float | None) -> Any:
        trend = None if low is None else SimpleNamespace(slope_interval=(low, high))
        return SimpleNamespace(component=name, unit="nats", trend=trend)

    one, open_, none = ladder("mla", 0.1, 0.2), ladder("moe", -0.1, 0.2), ladder("mtp", None, None)
    assert sentences.of_ladder([one, open_]) == "1 of 2 trends is resolved: mla (nats)."
    assert sentences.of_ladder([open_]) == "No trend is resolved."
    assert sentences.of_ladder([open_, none]) == "No trend is resolved. 1 line of 2 has no trend."

    def response(of: str, low: float | None, high: float) -> Any:
        trend = SimpleNamespace(slope=SimpleNamespace(low=low, high=high))
        return SimpleNamespace(factor=SimpleNamespace(name="rate"), of=of, trend=trend)

    found = [response("", -0.3, -0.1), response("mla", 0.1, 0.2), response("moe", -0.1, 0.1)]
    assert sentences.of_responses(found) == "2 of 3 trends are resolved: rate and rate for the effect of mla."
