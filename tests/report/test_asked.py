"""What was asked before the first run is in the report, and so is every later difference from it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_study as fake
import pytest
from factor_study import planned, records, study

from ablate.documents import SEAL
from ablate.files import sealed
from ablate.report import build, to_json, write
from ablate.report.html import render as to_html
from ablate.runs.asked import ask
from ablate.runs.plan import read_plan, resolved
from ablate.runs.store import Store
from ablate.runs.study import to_toml
from ablate.spec.decoding import encode
from ablate.sweep.folder import Claim
from ablate.sweep.seeds import Round

FACTORS = {"moe.n_routed_experts": [8, 16, 32]}


def folder(where: Path, **fields: Any) -> Path:
    asked = study(**({"preset": "nano", "hypothesis": "finer is better", "factors": FACTORS} | fields))
    plan, runs = planned(asked)
    plan = dataclasses.replace(plan, asked=plan.asked.stamped())
    found = records(
        plan, runs, lambda v, seed: 3.0 + 0.01 * seed + 0.001 * int(v.levels.get("moe.n_routed_experts", 8))
    )
    fake.write_study(where, encode(plan), found)
    (where / "study.toml").write_text(to_toml(asked))
    return where


def facts(where: Path) -> dict[str, str]:
    return {fact.label: fact.value for fact in build(where).asked}


def test_a_study_that_was_not_changed_says_so(tmp_path: Path) -> None:
    found = facts(folder(tmp_path / "s"))
    assert found["Hypothesis"] == "finer is better"
    assert found["Primary metric"] == "held-out loss (lower is better)"
    assert "before the first run; hash" in found["Stated"]
    assert found["Since then"].startswith("unchanged")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('hypothesis = "coarser is better"', "hypothesis (it was 'finer is better', and is 'coarser is better')"),
        ("margin = 0.05", "margin_nats (it was 0.005, and is 0.05)"),
        ('primary_metric = "max_violation"', "primary_metric"),
        ("n_seeds = 5", "n_seeds (it was 4, and is 5)"),
        ("confidence = 0.9", "confidence"),
    ],
)
def test_each_later_difference_is_named(tmp_path: Path, line: str, said: str) -> None:
    where = folder(tmp_path / "s")
    text = (where / "study.toml").read_text().splitlines()
    name = line.partition(" ")[0]
    kept = [old for old in text if not old.startswith(f"{name} ")]
    (where / "study.toml").write_text("\n".join([line, *kept]))
    assert said in facts(where)["Since then"]


def test_an_altered_question_no_longer_has_its_hash(tmp_path: Path) -> None:
    where = folder(tmp_path / "s")
    plan = json.loads((where / "plan.json").read_text())
    plan.pop(SEAL, None)
    plan["asked"]["document"]["hypothesis"] = "what came out"
    (where / "plan.json").write_text(sealed(plan))
    assert "altered" in facts(where)["Since then"]


def test_more_seeds_than_were_asked_are_a_difference() -> None:
    plan, _ = planned(study(preset="nano", factors=FACTORS))
    more, _ = planned(study(preset="nano", factors=FACTORS, n_seeds=6))
    assert ask(study(preset="nano", factors=FACTORS), resolved(plan)).hash == plan.asked.hash
    assert more.asked.hash != plan.asked.hash


def test_the_report_has_responses_and_the_primary_metric(tmp_path: Path) -> None:
    where = folder(tmp_path / "s", primary_metric="max_violation", margin=0.1)
    content = build(where)
    assert content.primary.title.startswith("Primary metric: largest load")
    assert "Stated beforehand as the primary metric" in content.answer[0]
    (table,) = content.responses
    assert table.title == "moe.n_routed_experts: the loss at each level"
    assert [row[0] for row in table.rows] == ["8", "16", "32"]
    assert "Trend per doubling" in table.note
    page = to_html(content)
    assert "What moe.n_routed_experts does" in page
    assert page.count('id="response0-') > 3
    write(content)
    markdown = (where / "report.md").read_text()
    assert "## What was asked" in markdown
    assert table.title.replace("_", r"\_") in markdown
    document = json.loads(json.dumps(to_json(content), allow_nan=False))
    assert document["responses"][0]["levels"][1]["difference"]["estimate"] == pytest.approx(0.008)
    assert document["asked"]["hash"] == read_plan(Store(where).plan_file).asked.hash
    assert read_plan(Store(where).plan_file).factors[0].positions == (8.0, 16.0, 32.0)


def test_what_was_asked_first_stays_when_the_study_says_otherwise_later(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    corpus: Any = SimpleNamespace(hash="c0ffee", folder=tmp_path)
    store = Store(tmp_path / "s")

    def claim(margin: float) -> Claim:
        asked = study(preset="nano", margin=margin, factors=FACTORS)
        now = Round(n_seeds=len(asked.crossed), origin="given", reason="as given")
        return Claim(store, asked, now, lambda step_s: planned(asked))

    first = claim(0.005)
    plan, _ = first.take(first.make({}), corpus)
    assert plan.asked.time_s is not None
    again = claim(0.05)
    known = again.earlier()
    assert known is not None
    later, _ = again.take(known, corpus)
    assert later.margin_nats == 0.05
    assert later.asked == plan.asked == read_plan(store.plan_file).asked
