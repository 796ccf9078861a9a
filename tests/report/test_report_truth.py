"""Reports of every design: what diverged first, one verdict everywhere, every warning in every form, one unit."""

import io
import json
import re

import fake_study as fake
import pytest
from rich.console import Console
from synthetic_study import planted

from ablate.attribution.verdicts import GAIN, HARM, NOT_RESOLVED, VERDICTS
from ablate.report import build, to_json
from ablate.report.html import render as to_html
from ablate.report.markdown import render as to_markdown
from ablate.report.names import PERHAPS, named
from ablate.report.tables.effects import NEEDED, attributed_verdict
from ablate.report.text import render as to_text
from ablate.spec.decoding import encode

DESIGNS = ("leave-one-out", "add-one-in", "first-last", "lattice", "optimal", "staged")


def report(folder, design, *args, **fields):
    study = planted(design, *args, **fields)
    return build(fake.write_study(folder / design, encode(study.plan), study.records))


def printed(content):
    out = io.StringIO()
    Console(file=out, width=100, color_system=None).print(to_text(content))
    return out.getvalue()


def words(content, *kinds):
    """What people read, each kind as one line of words without markup. HTML is slow, since it draws."""
    found = []
    if "html" in kinds:
        html = re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]*>", " ", to_html(content), flags=re.S)
        found.append(html.replace("&#39;", "'").replace("&gt;", ">"))
    if "md" in kinds:
        found.append(re.sub(r"\\(?=[^\w\s])", "", to_markdown(content)))
    if "terminal" in kinds:
        found.append(printed(content))
    return [" ".join(text.split()) for text in found]


def without_mla(variant, seed):
    return "diverged" if variant.levels["mla"] != "on" and variant.levels["fp8"] == "on" else "finished"


def kinds_of(design):
    """One design is drawn; the templates are the same for all."""
    return ("html", "md", "terminal") if design == "leave-one-out" else ("md", "terminal")


@pytest.mark.parametrize("design", DESIGNS)
def test_what_diverged_is_said_before_anything_else_in_every_design(tmp_path, design):
    content = report(tmp_path, design, without_mla)
    first = next(v for v in content.result.variants if "diverged" in v.counts)
    assert content.answer[0].startswith(f"Diverged: {first.name} ({first.counts['diverged']} of {len(first.runs)} run")
    n = sum("diverged" in v.counts for v in content.result.variants)
    assert n <= 4 or f"and {n - 4} more variants" in content.answer[0]
    for text in words(content, *kinds_of(design)):
        assert content.answer[0] in text
    assert "Diverged" not in " ".join(report(tmp_path / "whole", design).answer)


@pytest.mark.parametrize("design", DESIGNS)
def test_every_warning_stands_in_every_form(tmp_path, design):
    content = report(tmp_path, design, without_mla)
    assert set(content.result.attribution.warnings) <= set(content.warnings)
    for text in words(content, *kinds_of(design)):
        for warning in content.warnings:
            assert " ".join(warning[1:].split()) in text
    assumed = "interactions of more than 2 components are zero"
    assert design != "optimal" or assumed in words(report(tmp_path / "whole", design), "terminal")[0]


@pytest.mark.parametrize("design", ["leave-one-out", "lattice"])
def test_a_verdict_is_the_same_wherever_it_stands_and_names_its_correction(tmp_path, design):
    for seed in range(3):
        content = report(tmp_path / str(seed), design, seed=seed)
        found = content.result.attribution.effects
        document = json.loads(json.dumps(to_json(content)))
        table = content.effects
        assert "Holm over 6 effects" in table.columns[1].label
        assert "Holm over 6 effects" in words(content, "md")[0]
        assert "Holm" in words(content, "terminal")[0]
        answer = " ".join(content.answer)
        assert "Holm's correction over 6" in answer
        left = answer.partition("Not resolved: ")[2]
        for name, effect in found.items():
            assert document["attribution"]["effects"][name]["verdict"] == effect.verdict
            assert document["attribution"]["effects"][name]["corrected_over"] == 6
            (row,) = [row for row in table.rows if row[0].partition(",")[0] == name]
            said = attributed_verdict(effect, content.result)
            assert row[1] == said
            assert said in (effect.verdict, f"{GAIN}{PERHAPS}", f"{HARM}{PERHAPS}")
            assert bool(re.search(rf"{name}( with [a-z-]+)? \(between", left)) == (said == NOT_RESOLVED)
            listed = re.search(rf"{PERHAPS}: [^;]*\b{name}( with [a-z-]+)? \(", answer.partition("Not resolved: ")[0])
            assert bool(listed) == said.endswith(PERHAPS)
        for c in document["effects"]:
            assert (c["loss"]["verdict"], c["loss"]["family"]) == (found[c["name"]].verdict, 6)
        assert any("survives Holm's correction over the 6 effects" in note for note in content.effect_notes)


def test_a_single_comparison_has_no_correction_to_name(tmp_path):
    content = build(fake.write_study(tmp_path / "s", fake.plan(), fake.records()))
    assert content.effects.columns[1].label == "Verdict"
    assert "Holm" not in " ".join(words(content, "md", "terminal"))


def test_where_nothing_is_resolved_the_answer_says_what_is_excluded_and_what_would_decide(tmp_path):
    content = report(tmp_path, "leave-one-out", run_sd=0.08)
    answer = " ".join(content.answer)
    assert "0 of 6 effects on the held-out loss are resolved" in answer
    for c in content.result.comparisons:
        assert c.loss.verdict == NOT_RESOLVED
        low, high = (f"{end:+.4f}".replace("-", "−") for end in (c.loss.low, c.loss.high))
        assert f"{named(c)} (between {low} and {high}; " in answer
    c = next(c for c in content.result.comparisons if c.loss.runs_to_resolve)
    assert f"about {c.loss.runs_to_resolve:,} more runs, " in answer
    assert "one after another" in answer


@pytest.mark.parametrize("design", DESIGNS)
def test_what_is_still_needed_is_counted_in_runs_with_their_time(tmp_path, design):
    content = report(tmp_path, design)
    (place,) = [i for i, column in enumerate(content.effects.columns) if column.label == NEEDED]
    cells = [row[place] for row in content.effects.rows if row[0] != "all together"]
    assert all(re.fullmatch(r"0|–|\+[\d,]+ \(.*(s|min|days)\)", cell) for cell in cells), cells
    assert not re.search(r"more seeds?\b", " ".join(words(content, "md", "terminal")))


def test_the_correlation_of_pairs_and_what_pairing_saved_is_printed(tmp_path):
    content = report(tmp_path, "leave-one-out")
    gain = content.result.comparisons[0].pairing_gain
    assert content.noise.rows[0][2] == f"{gain.correlation:+.2f}"
    assert content.noise.rows[0][3].endswith("× (4 pairs)")
    assert to_json(content)["effects"][0]["pairing_gain"]["runs_ratio"] == gain.runs_ratio
    assert gain.runs_ratio > 1.5
    noisy = report(tmp_path / "n", "leave-one-out", seed_sd=0.0, run_sd=0.05)
    assert min(c.pairing_gain.runs_ratio for c in noisy.result.comparisons) < 1, "sharing seeds can cost"
    lattice = report(tmp_path, "lattice")
    assert any("the runs of a seed correlate at about +0.8" in note for note in lattice.effect_notes)


def test_held_equal_is_what_the_records_hold(tmp_path):
    def facts(content):
        return {fact.label: fact.value for fact in content.held_equal}

    whole = facts(report(tmp_path, "leave-one-out"))
    assert whole["Seeds"] == "0, 1, 2 and 3, the same for every variant"
    assert whole["Tokens and order"].startswith("checked: runs of one seed saw")
    assert "not all for every variant" in facts(report(tmp_path, "lattice"))["Seeds"]
    assert "no two finished runs share a seed" in facts(report(tmp_path, "optimal"))["Tokens and order"]
    lacking = report(
        tmp_path / "m", "leave-one-out", lambda v, s: "missing" if s == 3 and v.name == "full" else "finished"
    )
    assert "as planned" in facts(lacking)["Seeds"]
    records = fake.changed(fake.records(), "full", 0, order_hash="")
    records = fake.changed(records, "-mtp", 0, order_hash="")
    silent = build(fake.write_study(tmp_path / "silent", fake.plan(), records))
    assert facts(silent)["Tokens and order"].startswith("not checked: 2 finished runs")


def test_ranks_stand_in_every_form(tmp_path):
    content = report(tmp_path, "lattice", run_sd=0.002)
    assert content.ranks.rows[0][0] == "moe"
    assert content.ranks.rows[0][2] == "yes"
    for text in words(content, "md", "terminal"):
        assert content.ranks.title in text


def test_no_verdict_of_a_lost_effect_is_one_of_the_four_without_a_word(tmp_path):
    content = report(tmp_path, "lattice", without_mla)
    row = next(row for row in content.effects.rows if row[0] == "mla")
    assert row[1] == "not resolved (no interval)"
    assert any(note.startswith("mla: no interval, because it is defined on -mla (1 diverged of 1 run)")
               for note in content.effect_notes)  # fmt: skip
    assert NOT_RESOLVED in VERDICTS
