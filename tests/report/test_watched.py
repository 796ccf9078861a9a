"""Loads, drafts and lost numbers over a training: what is drawn and said is what the records hold."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import fake_study as fake
import pytest

from ablate.report import ReportContent, build, to_json
from ablate.report.captions import captions
from ablate.report.figures import all_figures
from ablate.report.html import render
from ablate.report.watched import BALANCE, DRAFTS, LOST, MOST_COLUMNS, MOST_ROWS, PANELS, router_names, spread
from ablate.runs.record import RunRecord

ROUTERS = ("layers.1.feed_forward.router", "objective.layers.0.block.feed_forward.router")
LOADS = {0: ((9, 1, 2), (4, 4, 4)), 1: ((0, 6, 6), (1, 1, 10))}  # seed -> tokens by expert of each router
OFF = fake.FULL | {"aux-free": "sequence-aux"}


def violation(seed: int) -> float:
    """What evaluation writes of LOADS, mean over routers."""
    return sum(max(row) * len(row) / sum(row) - 1 for row in LOADS[seed]) / 2


def run(name: str, levels: dict[str, str], seed: int, *, worse: float = 0.0, loads: bool = True) -> RunRecord:
    found = fake.record(name, seed, 3.2 + 0.01 * seed + worse, levels)
    last = len(found.curve)
    curve = tuple(
        point | {BALANCE: violation(seed) + worse + (last - k) / 10, DRAFTS: 0.5 + 0.01 * k + 0.001 * seed}
        | {LOST.format("gradient"): 1e-4 * k, LOST.format("weight"): 1e-5}
        for k, point in enumerate(found.curve, 1)
    )  # fmt: skip
    kept = dict(zip(ROUTERS, LOADS[seed], strict=True)) if loads else {}
    return dataclasses.replace(found, curve=curve, expert_loads=kept)


def study(folder: Path, *, loads: bool = True) -> ReportContent:
    seeds = [0, 1]
    plan = fake.plan([fake.variant("full", fake.FULL, seeds), fake.variant("-aux-free", OFF, seeds)], seeds=seeds)
    records = [run("full", fake.FULL, seed, loads=loads) for seed in seeds]
    records += [run("-aux-free", OFF, seed, worse=0.25, loads=loads) for seed in seeds]
    return build(fake.write_study(folder / "study", plan, records))


def test_a_map_has_the_loads_of_the_records_in_order_and_its_first_column_is_the_metric(tmp_path: Path) -> None:
    content = study(tmp_path)
    assert [each.variant for each in content.loads] == ["full", "-aux-free"]
    found = content.loads[0]
    assert found.routers == ROUTERS
    assert found.loads[0] == pytest.approx(((9 / 4 + 6 / 4) / 2, (2 / 4 + 6 / 4) / 2, (1 / 4 + 0) / 2))
    assert found.loads[1] == pytest.approx(((1 + 10 / 4) / 2, (1 + 1 / 4) / 2, (1 + 1 / 4) / 2))
    assert found.largest - 1 == pytest.approx((violation(0) + violation(1)) / 2)
    said = captions(content)["see"]["loads"]
    assert f"{found.largest:.2f}× the mean load in full and {found.largest:.2f}× in -aux-free" in said
    assert len(all_figures(content)["loads"]) == 2


def test_what_is_watched_is_the_mean_of_the_curves_and_the_sentence_says_its_ends(tmp_path: Path) -> None:
    content = study(tmp_path)
    found = {each.metric: each for each in content.watched}
    assert list(found) == [BALANCE, DRAFTS, LOST.format("weight"), LOST.format("gradient")]
    assert list(found) == [metric for metric in PANELS if metric in found]
    balance = found[BALANCE]
    assert balance.against is not None
    assert (balance.first.variant, balance.against.variant, balance.rest) == ("full", "-aux-free", ())
    mean = (violation(0) + violation(1)) / 2
    assert balance.first.means[0] == pytest.approx(mean + 1.9)
    assert (balance.first.lows[-1], balance.first.highs[-1]) == pytest.approx(
        (min(violation(0), violation(1)), max(violation(0), violation(1)))
    )
    assert found[DRAFTS].against is None
    assert [line.variant for line in found[DRAFTS].rest] == ["-aux-free"]
    said = captions(content)["see"]["watched"]
    assert f"gets {1 + mean:.2f}× the mean load in full, {1.25 + mean:.2f}× in -aux-free" in said
    assert f"{100 * (0.7 + 0.0005):.3g} % of the drafts of full are accepted, {100 * 0.5105:.3g} % at the first" in said
    assert "FP8 makes 2000 of a million gradients 0 in full" in said.replace(",", "")
    assert len(all_figures(content)["watched"]) == 4


def test_records_of_earlier_versions_have_no_map_and_the_rest_stands(tmp_path: Path) -> None:
    content = study(tmp_path, loads=False)
    assert content.loads == ()
    assert len(content.watched) == 4
    assert captions(content)["see"]["loads"] == ""
    assert "Loads of experts" in render(content)
    assert to_json(content)["expert_loads"] == []


def test_a_study_without_any_of_it_has_no_such_section(tmp_path: Path) -> None:
    records = [
        dataclasses.replace(r, metrics={k: v for k, v in r.metrics.items() if k in ("nats_per_token", "tokens_per_s")})
        for r in fake.records()
    ]
    content = build(fake.write_study(tmp_path / "s", fake.plan(), records))
    assert content.watched == ()
    assert 'id="watched"' not in render(content)


def test_of_many_routers_and_experts_some_are_drawn_with_the_first_and_the_last() -> None:
    assert spread(MOST_ROWS, MOST_ROWS) == list(range(MOST_ROWS))
    for n in (MOST_COLUMNS + 1, 256):
        found = spread(n, MOST_COLUMNS)
        assert (found[0], found[-1], len(set(found))) == (0, n - 1, MOST_COLUMNS)
    assert list(router_names(ROUTERS).values()) == ["layer 2", "MTP 1"]
