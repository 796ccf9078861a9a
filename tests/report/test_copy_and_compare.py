"""What a report gives to copy, two studies beside each other, and the index over a folder of studies."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import fake_study as fake
import pytest
from branched_study import lattice_study
from typer.testing import CliRunner

from ablate import cli
from ablate.report import build
from ablate.report.index import write as write_index
from ablate.report.markdown import render as to_markdown
from ablate.report.two import DIFFER, OPEN, both, document, sentences, unlike

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def study(folder: Path, **plan: object) -> Path:
    return fake.write_study(folder, fake.plan(**plan), fake.records())


def shifted(folder: Path, by: float, **plan: object) -> Path:
    """The same study with an effect that is larger by so many nats."""
    off = [loss + by for loss in fake.WITHOUT_LOSSES]
    return fake.write_study(folder, fake.plan(**plan), fake.records(fake.WITH_LOSSES, off))


def test_the_block_to_copy_checks_out_what_ran_and_writes_the_studys_file(tmp_path: Path) -> None:
    folder = study(tmp_path / "s")
    (folder / "study.toml").write_text('question = "?"\nEND-OF-STUDY\npreset = "cpu"\n', encoding="utf-8")
    lines = build(folder).repeat
    assert lines[0].startswith("git clone ")
    assert lines[1] == f"git checkout {COMMIT}"
    start = next(i for i, line in enumerate(lines) if line.startswith("cat > study.toml"))
    end = lines[start].partition("'")[2].rstrip("'")
    assert lines[start + 1 :].index(end) == 3, "the file's own line does not end it"
    assert any("dsv3-ablate sweep study.toml" in line for line in lines)
    records = [dataclasses.replace(r, environment={**r.environment, "commit": {"hash": f"{r.seed}" * 40}})
               for r in fake.records()]  # fmt: skip
    mixed = build(fake.write_study(tmp_path / "mixed", fake.plan(), records)).repeat
    assert not any(line.startswith("git checkout") for line in mixed)
    assert any("several commits" in line for line in mixed)


def test_values_are_given_with_half_of_their_interval(tmp_path: Path) -> None:
    content = build(study(tmp_path / "s"))
    effect = content.result.comparisons[0].loss
    half = (effect.high - effect.low) / 2
    assert content.paste == (f"mtp: −{-effect.estimate:.4f} ± {half:.4f} nats/token (95 % interval, n = 5)",)


def test_bibtex_holds_nothing_that_latex_would_obey(tmp_path: Path) -> None:
    cited = build(study(tmp_path / "s", question=r"What \input{x} is 5 % of $m_t$? } #1")).citation
    title = re.search(r"title = \{\{(.*)\}\},", cited)
    assert title
    assert not set(r"\{}$%#_") & set(title[1])
    assert cited.count("{") == cited.count("}")
    assert COMMIT in cited


def test_runs_lead_to_their_records(tmp_path: Path) -> None:
    content = build(study(tmp_path / "s"))
    for run, path in content.links.items():
        assert (tmp_path / "s" / path).is_file()
        assert f"[{run}]({path})" in to_markdown(content)
    assert len(content.links) == 10


def test_two_studies_differ_where_their_intervals_say_so(tmp_path: Path) -> None:
    first, same = (build(study(tmp_path / name)) for name in "ab")
    (each,) = both(first.result, same.result)
    assert (each.difference, each.verdict) == (0, OPEN)
    effect = first.result.comparisons[0].loss
    assert each.half_width == pytest.approx((effect.high - effect.low) / 2 * 2**0.5)
    assert "differ in their seeds and runs alone" in sentences(first, same)[1]
    other = build(shifted(tmp_path / "c", 0.03, preset="nano", margin_nats=0.01))
    (each,) = both(first.result, other.result)
    assert each.difference == pytest.approx(-0.03)
    assert each.verdict == DIFFER
    assert {line.partition(":")[0] for line in unlike(first.result, other.result)} == {"preset", "margin"}
    assert sentences(first, other)[0].startswith("1 of 1 effect differs")
    plain = json.loads(json.dumps(document(first, other), allow_nan=False))
    assert plain["effects"][0]["verdict"] == DIFFER


def test_studies_of_other_changes_are_refused_and_so_are_three(tmp_path: Path) -> None:
    off = fake.FULL | {"mla": "gqa"}
    variants = [fake.variant("full", fake.FULL, range(5)), fake.variant("-mla", off, range(5))]
    records = fake.records()[:5] + [fake.record("-mla", s, x, off) for s, x in enumerate(fake.WITHOUT_LOSSES)]
    other = build(fake.write_study(tmp_path / "o", fake.plan(variants), records))
    with pytest.raises(ValueError, match="one has mtp, the other mla; give two studies of the same changes"):
        both(build(study(tmp_path / "s")).result, other.result)
    done = CliRunner().invoke(cli.app, ["report", "a", "b", "c"])
    assert isinstance(done.exception, ValueError)
    assert "3 folders were given" in str(done.exception)


def test_two_studies_are_compared_by_the_command(tmp_path: Path) -> None:
    study(tmp_path / "a")
    shifted(tmp_path / "b", 0.03)
    done = CliRunner().invoke(cli.app, ["report", f"{tmp_path / 'a'}", f"{tmp_path / 'b'}", "--format", "json"])
    assert done.exception is None
    assert json.loads(done.stdout)["effects"][0]["component"] == "mtp"
    assert "1 of 1 effect differs" in done.stderr
    assert not (tmp_path / "a" / "report.html").exists()


def test_the_index_names_every_study_and_what_cannot_be_read(tmp_path: Path) -> None:
    study(tmp_path / "one", question="Is <b>it</b> worth it?")
    shutil.move(lattice_study(tmp_path / "here"), tmp_path / "two")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "plan.json").write_text("{")
    (tmp_path / "one" / "report.md").write_text("x")
    html, markdown = (path.read_text(encoding="utf-8") for path in write_index(tmp_path))
    assert "Is &lt;b&gt;it&lt;/b&gt; worth it?" in html
    assert 'href="one/report.md"' in html
    assert "report.html" not in html
    assert "No report: " in html
    assert "[report.md](one/report.md)" in markdown
    assert markdown.count("\n## ") == 3
    with pytest.raises(ValueError, match="has no study right below it"):
        write_index(tmp_path / "one")
