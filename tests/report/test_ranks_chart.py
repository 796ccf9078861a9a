"""What a report says of the ranks' timelines: chart, sentence and tables of one value, held to known spans."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import fake_study as fake
import played
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from rich.console import Console
from typer.testing import CliRunner

from ablate import cli
from ablate.components.variants import Variant, on_ranks
from ablate.parallel.layout import schedule_of
from ablate.presets import preset
from ablate.quantities import NONE
from ablate.report import ReportContent, build, to_json
from ablate.report.captions import captions
from ablate.report.figures.gantt import LOOKS, gantt, kinds
from ablate.report.html import render as to_html
from ablate.report.markdown import render as to_markdown
from ablate.report.tables.timeline import length_s, notes, seconds
from ablate.report.text import render as to_text
from ablate.runs.store import Store
from ablate.runs.timelines import read_timeline, write_timeline
from ablate.schedules.timeline import Timeline
from ablate.spec.decoding import data_id, encode
from ablate.spec.ranks import Ranks
from ablate.spec.run import RunSpec

LEVELS = {"full": "on", "-dualpipe": "1f1b"}


def run_of(level: str) -> RunSpec:
    small = on_ranks(preset("nano"), Ranks(pipeline=2))
    small = replace(small, trainer=replace(small.trainer, batch_size=8, micro_batch_size=1))
    spec = (Variant.full(small) | {"distill": "raw", "dualpipe": level}).resolve(small)
    return spec.run(corpus_hash="c0ffee", seed=0, n_steps=20)


def timeline_of(level: str) -> Timeline:
    """In 1F1B the second stage takes half as long again."""
    schedule = schedule_of(run_of(level).trainer)
    slower = 0.5 if level == "1f1b" else 0.0
    return played.timeline(schedule, lambda k, s, m: played.ALIKE[k] * (1 + slower * s), way=0.002, waits={"D": 0.004})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records, variants = [], []
    for name, level in LEVELS.items():
        spec = encode(run_of(level))
        levels = fake.FULL | {"dualpipe": level}
        records.append(replace(fake.record(name, 0, 3.0, levels), spec=spec, run_id=data_id(spec)))
        variants.append(fake.variant(name, levels, [0], run_ids=[data_id(spec)]))
    found = fake.write_study(tmp_path_factory.mktemp("ranks") / "study", fake.plan(variants, seeds=[0]), records)
    for record, level in zip(records, LEVELS.values(), strict=True):
        path = Store(found).timeline_file(record.run_id)
        assert write_timeline(path, replace(timeline_of(level), run_id=record.run_id))
    return found


@pytest.fixture(scope="module")
def content(folder: Path) -> ReportContent:
    return build(folder)


def test_the_sentence_says_what_the_spans_are(content: ReportContent) -> None:
    said = captions(content)["see"]["timeline"]
    shares = {}
    for level in LEVELS.values():
        timeline = timeline_of(level)
        busy = sum(s.seconds for spans in timeline.steps[0].ranks for s in spans if s.is_compute)
        shares[level] = 100 * (1 - busy / 2 / length_s(timeline.steps[0]))
    assert 0 < shares["on"] < shares["1f1b"]
    on, off = (f"{shares[level]:.3g} %" for level in ("on", "1f1b"))
    assert said.startswith(
        f"A rank has no work for {on} of a step under full (dualpipe) and {off} of a step under -dual"
    )
    assert said.endswith(f"with the measured seconds of each action: {on} and {off}."), "ideal ranks are as simulated"
    (full, _), dispatched = content.timelines, [
        s.seconds for spans in timeline_of("on").steps[0].ranks for s in spans if s.kind == "D"
    ]  # fmt: skip
    exposed = sum(dispatched) / 2 + full.measured.lost.transfer_s
    assert content.bubbles.rows[0][6] == f"{100 * exposed / full.measured.step_s:.3g} %"


def test_the_chart_has_every_span_of_both_variants_on_one_axis(content: ReportContent) -> None:
    axes = Figure().subplots()
    gantt(axes, content.timelines)
    spans = [span for each in content.timelines for row in each.step.ranks for span in row]
    drawn = [path for collection in axes.collections for path in collection.get_paths()]
    assert len(drawn) == len(spans)
    longest = max(length_s(each.step) for each in content.timelines)
    assert max(path.vertices[:, 0].max() for path in drawn) == pytest.approx(1000 * longest)
    assert min(path.vertices[:, 0].min() for path in drawn) == pytest.approx(0)
    blue = [c for c in axes.collections if to_hex(c.get_facecolor()[0]) == LOOKS["F"].color]
    assert sum(len(c.get_paths()) for c in blue) == sum(span.kind == "F" for span in spans)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["rank 0", "rank 1"] * 2
    assert [text.get_text() for text in axes.texts] == ["full (dualpipe)", "-dualpipe (1f1b)"]
    assert {look.name for look in kinds(content.timelines)} >= {"forward", "backward", "waiting for dispatched rows"}


def test_all_forms_have_the_tables(content: ReportContent) -> None:
    html, markdown, document = to_html(content), to_markdown(content), to_json(content)["timelines"]
    json.dumps(document)
    row = content.bubbles.rows[1]
    assert "| " + " | ".join(row) + " |" in markdown
    assert all(f">{cell}</td>" in html for cell in row[1:])
    assert 'id="timeline"' in html
    assert ".venv/bin/dsv3-ablate sweep study.toml --out results/again --timeline 2" in content.repeat
    shown = io.StringIO()
    Console(width=200, file=shown).print(to_text(content))
    assert row[2] in shown.getvalue()
    assert [each["schedule"] for each in document] == ["dualpipe", "1f1b"]
    assert document[1]["bubble_share"] == content.timelines[1].measured.bubble_share
    assert document[1]["peak_live_chunks"] == [2, 1]


def test_notes_say_what_a_figure_does_not(content: ReportContent) -> None:
    full, off = content.timelines
    said = " ".join(notes(content.timelines))
    assert "2 ranks on 8 cores, load 0.5" in said
    assert "The longest stage takes 1.2 times the mean of all" in said
    assert "The longest stage" not in next(notes(content.timelines))
    assert "Behind the schedule" not in said
    assert "do not last equally long makes it 0 % longer" in said
    simulated = replace(off.measured.simulated, even_step_s=off.measured.simulated.step_s / 0.98)
    luckily = replace(off, measured=replace(off.measured, simulated=simulated))
    assert "do not last equally long makes it 2 % shorter" in " ".join(notes([luckily]))
    summed = replace(off, measured=replace(off.measured, behind={"G": 0.004, "O": 0.001}))
    assert (
        "Behind the schedule a rank spends 4.00 ms in the all-reduce (waiting for other ranks included) and 1.00 ms in "
        "the optimizer; nothing hides them."
    ) in " ".join(notes([summed]))
    shown = seconds([full, summed])
    assert [column.label for column in shown.columns[-2:]] == ["all-reduce, ms", "optimizer, ms"]
    assert [row[-2:] for row in shown.rows if "all" in row[1]] == [(NONE, NONE), ("4.00", "1.00")]
    assert seconds([full, off]).columns == shown.columns[:-2]
    crowded = replace(off, timeline=replace(off.timeline, n_cores=1), measured=replace(off.measured, step_s=99.0))
    assert "off the measured one; ranks shared cores" in " ".join(notes([crowded]))
    assert "is emulated" in " ".join(notes([replace(full, emulated=True)]))


def test_a_report_without_timelines_is_as_before(tmp_path: Path) -> None:
    content = build(fake.write_study(tmp_path / "study", fake.plan(), fake.records()))
    assert content.timelines == ()
    assert 'id="timeline"' not in to_html(content)
    assert "Where the time of a step goes" not in to_markdown(content)


def test_a_timeline_reads_back_and_a_changed_one_is_refused(folder: Path, tmp_path: Path) -> None:
    given = replace(timeline_of("on"), run_id="b" * 16)
    path = tmp_path / f"{given.run_id}.json"
    assert write_timeline(path, given)
    assert not write_timeline(path, replace(given, load=9.0)), "the first one stays"
    found = read_timeline(path)
    assert replace(found, steps=()) == replace(given, steps=())
    assert [str(s) for s in found.steps[1].ranks[0]] == [str(s) for s in given.steps[1].ranks[0]]
    other = tmp_path / f"{'c' * 16}.json"
    other.write_text(path.read_text())
    with pytest.raises(ValueError, match="give it back its name"):
        read_timeline(other)
    path.write_text(path.read_text().replace("0F0 ", "0F1 ", 1))
    with pytest.raises(ValueError, match="altered after it was written"):
        read_timeline(path)


def test_export_writes_a_trace_and_says_where_there_is_none(folder: Path, tmp_path: Path) -> None:
    (run, _) = sorted(path.stem for path in (folder / "records").glob("*.json"))
    out = tmp_path / "trace.json"
    done = CliRunner().invoke(cli.app, ["export", str(folder / run), "--format", "trace", "--out", str(out)])
    assert done.exit_code == 0, done.output
    document = json.loads(out.read_text())
    assert document["otherData"] == {"run": run}
    plain = fake.write_study(tmp_path / "plain", fake.plan(), fake.records())
    done = CliRunner().invoke(cli.app, ["export", str(plain / fake.run_name("full", 0)), "--format", "trace"])
    assert "has no timeline" in str(done.exception)
