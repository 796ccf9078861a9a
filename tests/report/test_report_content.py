"""What a report says: the two sentences, what is missing, the tables against the numbers, the terminal's width."""

import dataclasses
import io
import json
import math
import re

import fake_study as fake
import pytest
from rich.console import Console

from ablate.quantities import signed
from ablate.report import build, to_json
from ablate.report.cleaning import clean
from ablate.report.text import render

WINNERS = ("gain", "harm", "lower", "raise", "better", "worse", "wins", "winner")


def content_of(tmp_path, plan=None, records=None, failures=()):
    records = fake.records() if records is None else records
    return build(fake.write_study(tmp_path / "study", plan or fake.plan(), records, failures))


def printed(content, width=100):
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(render(content, [content.folder / "report.html"]))
    return out.getvalue()


def test_a_gain_is_said_with_size_interval_seeds_and_price(tmp_path):
    first, second, caveat = content_of(tmp_path).answer
    assert first.startswith("At 812 k total parameters and 1.80 TFLOP a run (equal training FLOPs), ")
    assert "one learning rate served all variants" in caveat
    assert "multi-token prediction (mtp) lowers the held-out loss by 0.0415 nats per token" in first
    assert "95 % interval 0.0364 to 0.0465, 5 paired seeds" in first
    assert "a gain beyond the margin of 0.005" in first
    assert "1.250× the training FLOPs per token" in second
    assert "on this machine" in second


def test_a_harm_is_said_as_one(tmp_path):
    first, *_ = content_of(tmp_path, records=fake.records(fake.WITHOUT_LOSSES, fake.WITH_LOSSES)).answer
    assert "raises the held-out loss by 0.0415" in first
    assert "a harm beyond" in first


def test_identical_runs_have_no_winner(tmp_path):
    content = content_of(tmp_path, records=fake.records(fake.WITH_LOSSES, fake.WITH_LOSSES))
    assert content.result.comparisons[0].loss.estimate == 0
    assert "no effect within the margin of 0.005" in content.answer[0]
    assert not any(word in " ".join(content.answer) for word in WINNERS)
    assert "+0" not in content.answer[0]


def test_an_open_question_names_no_winner_and_says_what_would_decide(tmp_path):
    off = [a + d for a, d in zip(fake.WITH_LOSSES, (0.03, -0.02, 0.025, -0.01, 0.01), strict=True)]
    content = content_of(tmp_path, records=fake.records(fake.WITH_LOSSES, off))
    effect = content.result.comparisons[0].loss
    assert "is not resolved" in content.answer[0]
    assert f"About {effect.runs_to_resolve:,} more runs (" in content.answer[1]
    assert f"below {signed(effect.low)} or above {signed(effect.high)} nats is excluded" in content.answer[1]
    assert not any(word in " ".join(content.answer) for word in WINNERS)
    assert content.effects.rows[0][-1].startswith(f"+{effect.runs_to_resolve:,} (")


def test_emulated_speed_is_said_beside_the_number(tmp_path):
    emulated = {"loss": "measured", "speed": "emulated", "memory": "emulated"}
    content = content_of(tmp_path, records=[dataclasses.replace(r, evidence=emulated) for r in fake.records()])
    assert "in emulation, which says nothing of real speed" in content.answer[1]
    assert content.speed_notes[0].startswith("Emulated speed and memory: full and -mtp")
    assert "* emulated speed" in printed(content)


def test_an_unfinished_study_says_what_is_missing(tmp_path):
    records = fake.changed(fake.records(), "full", 3, status="diverged", reason="the loss was not finite at step 9",
                           metrics={"diverged_step": 9.0, "last_finite_loss": 5.25}, curve=())  # fmt: skip
    records = fake.without(fake.without(records, "-mtp", 1), "-mtp", 2)
    failure = fake.failure("-mtp", 1, "out of memory")
    content = content_of(tmp_path, records=records, failures=[failure])
    assert not content.complete
    rows = {(row[0], row[1]): row[2:4] for row in content.lost_runs.rows}
    assert rows["full", "3"] == ("diverged", "the loss was not finite at step 9 (last finite training loss 5.25)")
    assert rows["-mtp", "1"] == ("failed", "out of memory")
    assert rows["-mtp", "2"][0] == "missing"
    assert "2 of 10 runs still to be done" in content.warnings[0]
    assert content.answer[0] == "Diverged: full (1 of 5 runs)."
    assert "seed 3 of full diverged, seed 1 of -mtp failed and seed 2 of -mtp is missing" in content.answer[2]
    assert "out of memory" in printed(content)
    assert content.variants.rows[1][4] == "3 of 5"


def test_no_study_and_nothing_finished_are_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="holds no study"):
        build(tmp_path)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ValueError, match="cannot read the plan"):
        build(tmp_path)
    (tmp_path / "plan.json").write_text("[]")
    with pytest.raises(ValueError, match="is not an object"):
        build(tmp_path)
    failure = fake.failure("full", 1, "out of memory")
    with pytest.raises(ValueError, match="has finished; 1 failed, the first because out of memory; run it"):
        content_of(tmp_path, records=[], failures=[failure])


def test_a_study_whose_runs_all_diverged_is_a_report(tmp_path):
    lost = [dataclasses.replace(r, status="diverged", metrics={}, curve=(), reason="x") for r in fake.records()]
    content = content_of(tmp_path, records=lost)
    assert content.answer[0] == "Diverged: full (5 of 5 runs) and -mtp (5 of 5 runs)."
    assert "no pair of runs has finished" in content.answer[1]
    assert len(content.lost_runs.rows) == 10
    assert printed(content)


def test_every_number_of_the_tables_is_the_value_it_stands_for(tmp_path):
    content = content_of(tmp_path)
    result = content.result
    for row, v in zip(content.variants.rows, result.variants, strict=True):
        loss = v.metrics["nats_per_token"]
        assert row[:4] == (v.name, f"{loss.mean:.4f}", f"{loss.low:.4f} to {loss.high:.4f}",
                           f"{v.metrics['bits_per_byte'].mean:.4f}")  # fmt: skip
    (row,), (c,) = content.effects.rows, result.comparisons
    assert row[1] == c.loss.verdict
    assert [float(x.replace("−", "-")) for x in (row[2], *row[3].split(" to "))] == pytest.approx(
        [c.loss.estimate, c.loss.low, c.loss.high], abs=5e-5
    )
    (row,) = content.speed_ratios.rows
    assert float(row[2].rstrip("×")) == pytest.approx(math.exp(c.speed.estimate), abs=5e-4)
    for row, v in zip(content.speed.rows, result.variants, strict=True):
        assert row[1] == f"{v.metrics['tokens_per_s'].median:,.0f}"
        assert row[7] == f"{v.planned.cost['kv_cache_bytes_per_token']} B"
    assert [row[7] for row in content.runs.rows] == [run.run_id for run in result.runs]
    text = printed(content)
    assert re.search(r"full +3\.2090 +0\.0205 +5/5 +7,576 +6\.00 M +307 MiB +640 B", text)
    assert re.search(r"gain +−0\.0415 +−0\.0465 to −0\.0364 +0 +0\.848×", text)


def test_the_document_has_the_raw_numbers(tmp_path):
    content = content_of(tmp_path)
    document = json.loads(json.dumps(to_json(content), allow_nan=False))
    assert set(document) == {
        "format", "format_version", "question", "answer", "complete", "study", "variants", "effects", "split_cost",
        "gains", "asked", "tuning", "search", "primary_metric", "factors", "responses", "cells", "ladders", "history",
        "attribution", "watched", "expert_loads", "timelines",
        "pairing_breaks", "waterfall", "citation", "noise", "warnings", "lost_runs", "limits", "held_equal",
        "provenance", "repeat",
    }  # fmt: skip
    (effect,), (c,) = document["effects"], content.result.comparisons
    assert effect["loss"]["estimate"] == c.loss.estimate
    assert (effect["with"], effect["without"], effect["loss"]["verdict"]) == ("full", "-mtp", "gain")
    assert effect["changes"] == [{"component": "mtp", "with": "on", "without": "next-token", "forced": False}]
    assert effect["speed"]["ratio"] == pytest.approx(math.exp(c.speed.estimate))
    assert document["variants"][0]["metrics"]["nats_per_token"]["values"]["2"] == fake.WITH_LOSSES[2]
    assert document["variants"][0]["runs"][0]["run_id"] == fake.run_name("full", 0)
    assert document["study"]["corpus"]["hash"] == "c0ffee" * 8


@pytest.mark.parametrize("length", [8, 60, 300])
def test_the_terminal_is_never_wider_than_100_columns(tmp_path, length):
    name = "x" * length
    levels = fake.FULL | {"mtp": "next-token"}
    variants = [fake.variant("full", fake.FULL, range(5)), fake.variant(name, levels, range(5))]
    records = fake.records()[:5] + [fake.record(name, s, x, levels) for s, x in enumerate(fake.WITHOUT_LOSSES)]
    lines = printed(content_of(tmp_path, fake.plan(variants), records)).splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.count("x") for line in lines) >= length


def test_what_a_terminal_would_obey_is_not_printed(tmp_path):
    names = {"full": "[red]full[/red]", "-mtp": "-mtp"}
    variants = [v | {"name": names[v["name"]]} for v in fake.plan()["variants"]]
    plan = fake.plan(variants, question="[red]no[/red] \x1b[31m\x07 question‮")
    text = printed(content_of(tmp_path, plan))
    assert "[red]no[/red] [31m question" in text
    assert "[red]full[/red]" in text
    assert "\x1b" not in text
    assert "‮" not in text


def test_scale_and_shared_rate_are_among_the_limits(tmp_path):
    limits = " ".join(content_of(tmp_path).limits)
    assert "812 k parameters and 300 k tokens" in limits
    assert "671 B" in limits
    assert "sign of an effect" in limits
    assert "one learning rate" in limits
    assert "accepted drafts" in limits
    plan = fake.plan()
    plan["variants"][1]["learning_rate"] = 2e-3
    assert "one learning rate" not in " ".join(content_of(tmp_path / "tuned", plan).limits)


def test_a_component_that_this_program_does_not_know_is_shown_by_its_name(tmp_path):
    on, off = {"future": "on"}, {"future": "off"}
    variants = [fake.variant("full", on, range(5)), fake.variant("-future", off, range(5))]
    records = [fake.record("full", s, x, on) for s, x in enumerate(fake.WITH_LOSSES)]
    records += [fake.record("-future", s, x, off) for s, x in enumerate(fake.WITHOUT_LOSSES)]
    assert "future lowers the held-out loss" in content_of(tmp_path, fake.plan(variants), records).answer[0]


def test_what_goes_with_a_prerequisite_is_named_as_that(tmp_path):
    off = fake.FULL | {"moe": "dense", "aux-free": "sequence-aux"}
    variants = [fake.variant("full", fake.FULL, range(5)), fake.variant("-moe", off, range(5))]
    records = fake.records()[:5] + [fake.record("-moe", s, x, off) for s, x in enumerate(fake.WITHOUT_LOSSES)]
    content = content_of(tmp_path, fake.plan(variants), records)
    assert content.effects.rows[0][0] == "moe, instead of dense (and with it aux-free)"
    assert "(moe) with aux-free, which requires it, lowers the held-out loss" in content.answer[0]
    assert any("turned off together" in note for note in content.effect_notes)


def test_a_further_held_out_set_has_a_row_and_a_column_of_its_own(tmp_path):
    records = [
        dataclasses.replace(r, metrics={**r.metrics, "distill_nats_per_token": r.metrics["nats_per_token"] + 1})
        for r in fake.records()
    ]
    content = content_of(tmp_path, records=records)
    (first,), (second,) = content.effects.rows, content.other_sets.rows
    assert second == (first[0], "distill", *first[1:])
    assert content.variants.columns[4].label == "distill, nats/token"
    assert content.variants.rows[0][4] == "4.2090"


def test_what_was_judged_is_said_with_its_documents_and_of_old_records_as_it_was(tmp_path):
    def said(folder, records):
        return next(f.value for f in content_of(folder, records=records).held_equal if f.label == "Evaluation")

    judged = {"held_out": {"windows": 64, "documents": 31}, "distill": {"windows": 1, "documents": 1}}
    old = fake.records()
    new = [dataclasses.replace(r, judged=judged) for r in old]
    assert said(tmp_path / "old", old) == "main-head loss on the first 64 held-out windows of 256 tokens, or all"
    assert said(tmp_path / "new", new) == (
        "main-head loss at the end on windows of 256 tokens, spread evenly over the held-out text: 64 windows, parts "
        "of 31 documents; over distill: 1 window, parts of 1 document (points of the curve before the end: 16 of the "
        "windows)"
    )


def test_curves_and_gaps_are_over_seeds(tmp_path):
    content = content_of(tmp_path)
    full, off = content.curves
    assert len(full.points) == fake.N_POINTS
    assert full.points[-1].mean == pytest.approx(sum(fake.WITH_LOSSES) / 5)
    assert (full.points[-1].low, full.points[-1].high, full.points[-1].n) == (
        min(fake.WITH_LOSSES), max(fake.WITH_LOSSES), 5,
    )  # fmt: skip
    assert full.points[-1].flops == off.points[-1].flops == pytest.approx(1.8e12)
    assert full.decay_start_tokens == pytest.approx(0.8 * fake.N_TOKENS)
    (gap,) = content.gaps
    effect = content.result.comparisons[0].loss
    last = gap.points[-1]
    assert (last.share, last.mean, last.low, last.high) == pytest.approx((1, effect.estimate, effect.low, effect.high))


def test_texts_from_outside_are_one_printable_line():
    assert clean("a\n\tb\x00 c") == "a b c"
    assert clean("x" * 5000) == "x" * 1999 + "…"


def test_runs_matched_in_seconds_are_checked_against_their_budget(tmp_path):
    seconds = {("full", 0): 65.9, ("full", 1): 66.1, ("-mtp", 3): 41.0, ("-mtp", 4): None}
    records = fake.records()
    for i, record in enumerate(records):
        name, seed = ("full" if i < 5 else "-mtp"), record.seed
        taken = seconds.get((name, seed), 60.0)
        metrics = dict(record.metrics) | ({} if taken is None else {"training_s": taken})
        records[i] = dataclasses.replace(record, metrics=metrics)
    content = content_of(tmp_path, fake.plan(match="seconds", budget=60.0), records)
    missed, unknown = (w for w in content.warnings if "seconds of training" in w or "trained more than" in w)
    assert missed.startswith("2 of 10 runs trained more than 10 % longer or shorter than the 1 min 00 s")
    assert "-mtp seed 3 68.3 % and full seed 1 110 % of it" in missed
    assert unknown.startswith("1 run of an earlier version")
    place = [column.label for column in content.runs.columns].index("Training over budget")
    assert [row[place] for row in content.runs.rows][:2] == ["110 %", "110 %"]
    equal_flops = content_of(tmp_path / "flops", records=records)
    assert not any("trained more than" in warning for warning in equal_flops.warnings)
    assert "Training over budget" not in [column.label for column in equal_flops.runs.columns]
