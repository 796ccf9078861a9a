"""A whole step: V3's against the published one, what must hold of any, and layouts that are refused."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablate.cluster.chunks import even_layers, split_layers
from ablate.cluster.document import simulation_document
from ablate.cluster.inputs import Input, assume, assumptions, draw
from ablate.cluster.question import Request, resolve
from ablate.cluster.search import estimate, layouts, search
from ablate.cluster.simulate import METRICS, Simulation, simulate

V3: dict[str, Any] = {"cluster": "h800-2048", "preset": "v3-671b"}


@cache
def found(**changes: Any) -> Simulation:
    return simulate(resolve(Request(**V3 | changes)).question, 32)


def small(**changes: Any) -> Request:
    """Something that simulates in milliseconds."""
    base = {"cluster": "h200-8", "preset": "v2-lite-16b", "batch": 64, "layout": {"pipeline": 2, "expert": 4}}
    return Request(**base | changes)


def test_v3_on_2048_h800_is_within_a_tenth_of_the_published_step() -> None:
    """arXiv:2505.09343, table 4; nothing is fitted to the step, the profile is of one pair of chunks."""
    one = found()
    assert one.value("step_s") == pytest.approx(19.926, rel=0.10)
    assert one.value("gpu_hours_per_trillion_tokens") == pytest.approx(180e3, rel=0.10)
    low, high = one.range("step_s")
    assert low < 19.926 < high
    published = {"forward_s": 1.13, "backward_s": 1.99, "overlapped_s": 13.95, "bubble_s": 2.06}
    for name, seconds in published.items():
        assert one.value(name) == pytest.approx(seconds, rel=0.20), name
    assert one.fits
    assert one.value("memory_bytes_per_rank") > 0.6 * one.question.cluster.memory_bytes


@pytest.mark.parametrize("schedule", ["on", "1f1b", "zb1p"])
def test_the_parts_add_up_to_the_step(schedule: str) -> None:
    off = {} if schedule == "on" else {"disable": ("dualpipe",), "alternatives": {"dualpipe": schedule}}
    one = simulate(resolve(Request(**V3, **off)).question, 8)
    parts = ("bubble_s", "forward_s", "backward_s", "weight_s", "overlapped_s", "optimizer_s")
    np.testing.assert_allclose(sum(one.metrics[name] for name in parts), one.metrics["step_s"])
    assert one.metrics["exposed_communication_s"].min() >= 0
    assert set(METRICS) == set(one.metrics)


def test_every_change_of_the_machinery_moves_the_step_the_known_way() -> None:
    full = found().value("step_s")
    for off in ("fp8", "dualpipe", "alltoall"):
        assert simulate(resolve(Request(**V3, disable=(off,))).question, 0).value("step_s") > full, off
    assert simulate(resolve(Request(**V3, disable=("mtp",))).question, 0).value("step_s") < full
    assert simulate(resolve(Request(**V3, disable=("aux-free",))).question, 0).value("step_s") == full


def test_slower_links_memory_and_devices_never_help() -> None:
    question = resolve(small()).question
    step = simulate(question, 0).value("step_s")
    for name in ("nvlink_bytes_per_s", "memory_bytes_per_s", "bf16_flops_per_s", "fp8_flops_per_s"):
        slower = replace(question, cluster=replace(question.cluster, **{name: getattr(question.cluster, name) / 2}))
        assert simulate(slower, 0).value("step_s") > step, name


def test_recomputation_trades_time_for_memory() -> None:
    steps, sizes = [], []
    for recompute in ("none", "selective", "full"):
        one = simulate(resolve(small(layout={"pipeline": 2, "expert": 4, "recompute": recompute})).question, 0)
        steps.append(one.value("step_s"))
        sizes.append(one.value("memory_bytes_per_rank"))
    assert steps == sorted(steps)
    assert sizes == sorted(sizes, reverse=True)


def test_every_input_has_a_label_and_a_source_and_the_tornado_is_sorted() -> None:
    asked = resolve(small())
    document = simulation_document(asked, simulate(asked.question, 16))
    labels = {"exact", "measured here", "measured elsewhere", "assumed"}
    assert all(item["label"] in labels and item["source"] for item in document["inputs"])
    swings = [abs(row["step_s_at_high"] - row["step_s_at_low"]) for row in document["tornado"]]
    assert swings == sorted(swings, reverse=True)
    assert swings[0] > 0
    for name in METRICS:
        assert document[name]["low"] <= document[name]["high"]


def test_draws_are_ends_and_strata() -> None:
    one = Input(value=2.0, low=1.0, high=8.0, label="assumed", source="a test")
    draws = draw({"a": one, "b": replace(one, value=1.0)}, n_samples=400)
    assert draws["a"][:3].tolist() == pytest.approx([2.0, 1.0, 8.0])
    assert draws["b"][3:5].tolist() == pytest.approx([1.0, 8.0])
    assert draws.range(draws["a"]) == pytest.approx((1.0, 8.0), rel=0.05)
    assert abs(np.corrcoef(draws["a"][5:], draws["b"][5:])[0, 1]) < 0.2
    alone = draw({"a": one}, n_samples=400)
    assert np.array_equal(alone["a"][3:], draws["a"][5:])  # an input's draws do not depend on the others


def test_an_input_can_be_set_and_a_misspelt_one_is_answered() -> None:
    question = resolve(small(assume={"bf16_product": 0.3})).question
    assert question.inputs["bf16_product"].fixed
    assert simulate(question, 0).value("step_s") > simulate(resolve(small()).question, 0).value("step_s")
    with pytest.raises(ValueError, match="did you mean 'bf16_product'"):
        assume(assumptions(), {"bf16_produkt": 1.0})


def test_layers_are_split_with_the_shortest_longest_stage() -> None:
    assert split_layers([1.0] * 8, 0.0, 0.0, 4) == [2, 2, 2, 2]
    assert split_layers([1.0] * 7, 0.0, 2.0, 4) == [3, 3, 1, 0] or sum(split_layers([1.0] * 7, 0.0, 2.0, 4)) == 7
    counts = split_layers([1.0] * 61, 0.1, 3.6, 16)
    assert sum(counts) == 61
    assert max(counts) == 4 or counts[-1] == 0
    assert sum(even_layers(61, 2, 16)) == 61
    assert even_layers(126, 2, 16) == [8] * 15 + [6]
    with pytest.raises(ValueError, match="fewer pipeline ranks"):
        split_layers([1.0] * 3, 0.0, 0.0, 8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layout": {"pipeline": 3}}, "do not divide 8 GPUs"),
        ({"layout": {"pipeline": 2}, "batch": 63}, "does not divide among 4 data ranks"),
        ({"layout": {"expert": 5}}, "must divide"),
        ({"layout": {"tensor": 16}}, "do not divide"),
        ({"disable": ("moee",)}, "did you mean 'moe'"),
        ({"disable": ("alltoall",), "alternatives": {"alltoall": "1f1b"}}, "it has flat, deduplicated"),
        ({"alternatives": {"dualpipe": "zb1p"}}, "add --disable dualpipe"),
        ({"cluster": "h200"}, "did you mean 'h200-8'"),
        ({"profile": "v3-on-h80"}, "did you mean 'v3-on-h800'"),
        ({"preset": "", "model": Path("qwen3-8b")}, "--batch is missing"),
        ({"batch": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(changes: dict[str, Any], said: str) -> None:
    if "model" in changes:
        changes = changes | {"batch": None}
    with pytest.raises(ValueError, match=said) as error:
        simulate(resolve(small(**changes)).question, 0)
    assert "\n" not in str(error.value)


def test_a_cluster_of_the_users_own(tmp_path: Path) -> None:
    facts = resolve(small()).question.cluster.facts()
    lines = [f"{k} = {v!r}".replace("'", '"') for k, v in facts.items() if k not in ("n_gpus", "profile")]
    path = tmp_path / "mine.toml"
    path.write_text("\n".join([*lines, "n_gpus = 16"]))
    question = resolve(small(cluster=str(path))).question
    assert not question.corrections  # without a profile the published rates stand alone
    half = resolve(small(rates="published")).question
    assert simulate(question, 0).value("step_s") < simulate(half, 0).value("step_s")
    path.write_text("\n".join([*lines, "n_gpus = 12"]))
    with pytest.raises(ValueError, match="whole number of nodes"):
        resolve(small(cluster=str(path)))


@pytest.mark.slow
def test_search_finds_what_trying_everything_finds() -> None:
    question = resolve(small(preset="v2-lite-16b", batch=32, layout={})).question
    best, _, tried = search(question)
    steps = {}
    for layout in layouts(question.layout, question.cluster, question.model, question.batch):
        try:
            one = simulate(replace(question, layout=layout), 0)
        except ValueError:
            continue
        if one.fits:
            steps[layout] = one.value("step_s")
    assert tried >= len(steps) > 20
    assert best.value("step_s") == pytest.approx(min(steps.values()))
    assert best.question.layout == min(steps, key=lambda layout: steps[layout])


def test_a_long_step_is_estimated_from_short_ones() -> None:
    question = resolve(small(batch=512)).question
    candidate = estimate(question)
    assert candidate is not None
    assert candidate.step_s == pytest.approx(simulate(question, 0).value("step_s"), rel=1e-3)
