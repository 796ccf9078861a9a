"""Each change by each kind of evidence: planted savings found again, exact figures recomputed, rules that hold."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import answer_study as study
import fake_study as fake
import numpy as np
import pytest

from ablate.attribution.gain.scale import SizeEffect
from ablate.attribution.gain.two_sizes import change_between
from ablate.attribution.verdicts import GAIN, HARM, NO_EFFECT, NOT_RESOLVED
from ablate.cluster.hardware import cluster
from ablate.cluster.layout import SYSTEM, published_layout
from ablate.evidence.changes.content import CHANGES, build
from ablate.evidence.changes.equality import equality
from ablate.evidence.changes.exact import BETWEEN_NODES, CACHE, COPIES, DENSE, FLOPS, PARAMETERS, STATE, exact
from ablate.evidence.changes.measured import PERHAPS_GAIN, Measured, by_size, of_study
from ablate.evidence.changes.reported import direction, noise, reported
from ablate.evidence.changes.sentences import sentences
from ablate.evidence.changes.studies import read_study
from ablate.evidence.changes.trend import reach, trend
from ablate.evidence.published import Finding, findings
from ablate.presets import preset
from ablate.presets.account import account_preset
from ablate.report import which_change

V3 = preset("v3-671b")


def of(name: str):
    return exact(V3, name, cluster("h800-2048"), published_layout("v3-671b"))


def of_folder(folder: Path) -> tuple[Measured, ...]:
    return of_study(*read_study(folder))[0]


@pytest.mark.parametrize("name", ["mla", "moe", "aux-free", "mtp", "fp8"])
def test_exact_figures_are_those_of_account(name: str) -> None:
    on, off = (account_preset("v3-671b", disabled, [], {}, None) for disabled in ([], [name]))
    for figure, key in ((FLOPS, "training_flops_per_token"), (PARAMETERS, "total_parameters"),
                        (CACHE, "kv_cache_bytes_per_token")):  # fmt: skip
        found = of(name).figure(figure)
        assert found is not None
        assert (found.on, found.off) == (on[key], off[key])
    state = of(name).figure(STATE)
    assert state is not None
    assert state.on == on["weight_bytes"] + on["optimizer_bytes"]


def test_what_is_no_part_of_the_model_changes_none_of_its_figures() -> None:
    for name in ("dualpipe", "alltoall", "distill"):
        assert of(name).by_construction
        assert not any(figure.changes for figure in of(name).figures)
    copies, sent, dense = of("dualpipe").figure(COPIES), of("alltoall").figure(BETWEEN_NODES), of("moe").figure(DENSE)
    assert copies is not None
    assert sent is not None
    assert dense is not None
    assert (copies.on, copies.off) == (2, 1)
    assert (sent.on, sent.off) == (pytest.approx(3.18, abs=0.01), pytest.approx(7.0))  # the method card of alltoall
    assert dense.multiple == pytest.approx(37 / 671, rel=0.25)  # about activated over all parameters


def test_planted_savings_are_found_again(tmp_path: Path) -> None:
    found = {m.component: m for m in of_folder(study.lattice(tmp_path / "s", {"mla": 1.2, "mtp": 0.9}))}
    for name, saved in (("mla", 1.2), ("mtp", 0.9)):
        tokens = found[name].tokens
        assert tokens is not None
        assert tokens.estimate is not None
        assert tokens.low < math.log(saved) < tokens.high
        assert tokens.verdict == (GAIN if saved > 1 else HARM)
        assert found[name].index == "owen"
    mtp = found["mtp"]
    assert mtp.flops_cost is not None
    assert mtp.flops_cost.estimate == pytest.approx(mtp.tokens.estimate + math.log(4.8 / 6.0))  # type: ignore[union-attr]
    assert mtp.against == "next-token"


def test_a_certain_sign_within_the_margin_is_perhaps_negligible(tmp_path: Path) -> None:
    found = {m.component: m for m in of_folder(study.lattice(tmp_path / "s", {"mla": 1.02, "mtp": 1.0}, noise=0.004))}
    assert found["mla"].tokens.verdict == PERHAPS_GAIN  # type: ignore[union-attr]
    assert found["mtp"].tokens.verdict == NO_EFFECT  # type: ignore[union-attr]


def test_the_trend_between_two_sizes_is_the_planted_one(tmp_path: Path) -> None:
    small = study.lattice(tmp_path / "a", {"mla": 1.1, "mtp": 0.9})
    large = study.lattice(tmp_path / "b", {"mla": 1.3, "mtp": 0.9}, size=4.0)
    measured = [*of_folder(large), *of_folder(small)]
    sizes = {name: by_size([m for m in measured if m.component == name]) for name in ("mla", "mtp")}
    assert [round(m.flops / sizes["mla"][0].flops) for m in sizes["mla"]] == [1, 16]
    mla, mtp = (trend(sizes[name]) for name in ("mla", "mtp"))
    assert mla.low is not None
    assert mla.high is not None
    assert mla.low < math.log(1.3 / 1.1) / math.log10(16) < mla.high
    assert (mla.resolved, mtp.resolved) == (True, False)
    assert trend(sizes["mla"][:1]).reason == "measured at one size"
    assert mla.prediction is None
    far = reach([sizes["mla"], []], "a model", 1e24)
    assert far is not None
    assert far.claims_end_flops == pytest.approx(sizes["mla"][-1].flops * 10**0.5)
    assert far.decades_beyond == pytest.approx(24 - math.log10(far.claims_end_flops))
    ladder = [replace(sizes["mla"][0], flops=10**at) for at in (9.0, 10.0, 11.0, 12.0)]
    alone, beside = (reach(found, "a model", 1e24) for found in ([ladder], [ladder, sizes["mtp"]]))
    assert alone is not None
    assert beside is not None
    assert (alone.n_sizes, alone.claims_end_flops) == (4, math.inf)
    assert (beside.n_sizes, beside.claims_end_flops) == (2, sizes["mtp"][-1].flops * 10**0.5), "sizes of another change"


def test_the_interval_of_a_change_covers_at_its_rate() -> None:
    generator, inside = np.random.default_rng(3), 0
    for _ in range(2000):
        sides = [generator.normal(0.1, sd, 5) for sd in (0.02, 0.05)]
        effects = [
            SizeEffect(flops=flops, estimate=float(x.mean()), standard_error=float(x.std(ddof=1) / 5**0.5))
            for flops, x in zip((1e12, 1e13), sides, strict=True)
        ]
        found = change_between(*effects, dfs=(4.0, 4.0))
        inside += found.low <= 0 <= found.high
    assert 0.93 < inside / 2000 < 0.97
    with pytest.raises(ValueError, match="larger size second"):
        change_between(effects[1], effects[0], dfs=(4.0, 4.0))


def test_a_preset_whose_variants_cost_less_is_no_other_size(tmp_path: Path) -> None:
    (one,) = (m for m in of_folder(study.lattice(tmp_path / "s", {"mla": 1.1, "mtp": 0.9})) if m.component == "mla")
    dense = replace(one, index="first", flops=0.6 * one.flops, parameters=one.parameters // 2)
    assert by_size([dense, one]) == (one,)
    assert by_size([replace(dense, preset="nano"), one]) == (replace(dense, preset="nano"), one)


def test_of_one_size_a_whole_design_comes_before_a_comparison(tmp_path: Path) -> None:
    (one,) = (m for m in of_folder(study.lattice(tmp_path / "s", {"mla": 1.1, "mtp": 0.9})) if m.component == "mla")
    compared, other = replace(one, index="last"), replace(one, against="mha", index="owen")
    assert by_size([compared, one, other]) == (one,)
    assert by_size([other]) == ()


def test_counted_findings_ask_what_the_switch_asks() -> None:
    counted = [finding for _, finding in findings() if finding.asks_what_we_ask]
    assert {finding.component for finding in counted} == set(CHANGES) - {*SYSTEM, "distill"}
    for finding in counted:
        assert finding.against == ""
        assert direction(finding) in ("gain", "harm", "none")


def test_a_published_difference_counts_beyond_the_noise_of_its_own_tables() -> None:
    assert noise() == pytest.approx(0.002 / 0.729)
    base = {"component": "moe", "claim": "x", "metric": "loss", "scale": "1 B", "at": "here"}
    assert direction(Finding(**base, off=2.0, on=2.0 * (1 - 1.1 * noise()))) == "gain"  # type: ignore[arg-type]
    assert direction(Finding(**base, off=2.0, on=2.0 * (1 - 0.9 * noise()))) == "none"  # type: ignore[arg-type]
    assert direction(Finding(**base, off=2.0, on=2.1)) == "harm"  # type: ignore[arg-type]
    assert direction(Finding(**base, off=50.0, on=80.0, higher_is_better=True)) == "gain"  # type: ignore[arg-type]
    assert direction(Finding(**base, off=3.0, on=1.0, effect="ratio")) == "gain"  # type: ignore[arg-type]
    assert direction(Finding(**base, value=-0.001, standard_error=0.001)) == "none"  # type: ignore[arg-type]
    assert direction(Finding(**base, value=-0.003, standard_error=0.001)) == "gain"  # type: ignore[arg-type]
    assert direction(Finding(**base, value=0.004)) == "none"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "verdict", "agreement"),
    [
        ("moe", GAIN, "agrees"),
        ("moe", PERHAPS_GAIN, "agrees"),
        ("moe", HARM, "disagrees"),
        ("moe", NO_EFFECT, "disagrees"),
        ("moe", NOT_RESOLVED, "cannot tell"),
        ("fp8", NO_EFFECT, "agrees"),
        ("fp8", HARM, "disagrees"),
        ("mla", HARM, "cannot tell"),  # papers point both ways
        ("distill", GAIN, "cannot tell"),  # none is comparable
    ],
)
def test_agreement_follows_its_rule(tmp_path: Path, name: str, verdict: str, agreement: str) -> None:
    ours = of_folder(study.lattice(tmp_path / "s", {"mla": 1.1, "mtp": 0.9}))[0]
    assert ours.tokens is not None
    ours = replace(ours, component=name, tokens=replace(ours.tokens, verdict=verdict))
    assert reported(name, ours, neutral=False).agreement == agreement
    assert reported(name, None, neutral=False).agreement == "cannot tell"


def test_a_table_of_equality_is_read_and_a_case_that_differs_is_told(tmp_path: Path) -> None:
    assert equality("mla", tmp_path) is None
    none = equality("dualpipe", tmp_path)
    assert none is not None
    assert none.file is None
    assert not none.holds
    rows = [{"schedule": s, "variant": "full", "holds": True, "gradient_error": 1e-16} for s in ("dualpipe", "1f1b")]
    (tmp_path / "schedules.json").write_text(json.dumps(rows))
    whole = equality("dualpipe", tmp_path)
    assert whole is not None
    assert (whole.holds, whole.alternatives) == (True, ("dualpipe", "1f1b"))
    (tmp_path / "schedules.json").write_text(json.dumps([*rows[:1], rows[1] | {"holds": False}]))
    differing = equality("dualpipe", tmp_path)
    assert differing is not None
    assert not differing.holds
    (tmp_path / "schedules.json").write_text("[1]")
    with pytest.raises(ValueError, match="no table of equality"):
        equality("dualpipe", tmp_path)


@pytest.mark.slow
def test_the_answer_of_the_shipped_studies_with_the_real_simulation(tmp_path: Path) -> None:
    whole = build("v3-671b", "h800-2048")
    assert set(whole.speeds.changes) == {"mla", "moe", "aux-free", "mtp", "fp8", "dualpipe", "alltoall"}
    step = whole.speeds.step
    assert step is not None
    assert step.published_s is not None
    assert step.seconds == pytest.approx(step.published_s, rel=0.1)
    assert whole.studies
    assert len(sentences(whole)) == 5
    assert set(which_change.files(whole, tmp_path)) == {"report.html", "report.md", "report.json", "picture.svg"}


def test_a_text_that_is_no_longer_read_is_another_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, spec = {"distill": 1.1, "mtp": 0.9}, fake.spec
    now = study.lattice(tmp_path / "now", saved)
    assert {m.component for m in of_folder(now) if by_size([m])} == {"distill", "mtp"}
    text = {"kind": "teacher", "text": "stdlib", "text_hash": "of another text"}
    monkeypatch.setattr(fake, "spec", lambda variant, seed: {**spec(variant, seed), "text": text})
    then = study.lattice(tmp_path / "then", saved)
    assert {m.component for m in of_folder(then) if by_size([m])} == {"mtp"}
    assert "distill read another text than it does now" in read_study(then)[0].warnings


def test_a_study_whose_runs_determine_nothing_yet_is_named_and_counted_nowhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = study.lattice(tmp_path / "whole", {"mla": 1.1, "mtp": 0.9})
    begun = study.lattice(tmp_path / "begun", {"mla": 1.1, "mtp": 0.9}, size=4.0)
    for path in sorted((begun / "records").iterdir())[1:]:
        path.unlink()
    found = study.answer(monkeypatch, [whole, begun])
    assert [each.name for each in found.studies] == ["whole"]
    assert [each.name for each in found.silent] == ["begun"]
    page = which_change.page(found, tmp_path)
    assert "of 1 study at" in page.scale
    assert "begun gives no effect yet: 1 of its 16 runs are finished." in page.limits


def test_an_effect_that_is_not_known_yet_hides_no_smaller_size(tmp_path: Path) -> None:
    known = of_folder(study.lattice(tmp_path / "whole", {"mla": 1.1, "mtp": 0.9}))
    begun = study.lattice(tmp_path / "begun", {"mla": 1.1, "mtp": 0.9}, size=4.0)
    for path in sorted((begun / "records").iterdir())[1:]:
        path.unlink()
    open_yet = tuple(replace(each, preset="larger") for each in of_folder(begun))
    assert open_yet
    assert not any(each.is_known for each in open_yet)
    mla = [each for each in (*known, *open_yet) if each.component == "mla"]
    assert [each.study.name for each in by_size(mla)] == ["whole"]
