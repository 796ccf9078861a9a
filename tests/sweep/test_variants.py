"""Studies become the right variants and budgets, and their files repeat them."""

from __future__ import annotations

import dataclasses
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from ablate.attribution.design.exchange import EXTRA_RUNS
from ablate.components.codec import decode_run
from ablate.components.variants import Variant
from ablate.files import to_json
from ablate.model.nodes import AdamWNode
from ablate.presets import preset
from ablate.runs.plan import Plan, decode_plan, make_plan, other_study
from ablate.runs.study import Study, question, read_study, to_toml
from ablate.spec.decoding import encode, run_id
from ablate.spec.machine import Machine
from ablate.spec.run import RunSpec
from ablate.sweep.variants import variants


def study(**fields: Any) -> Study:
    return Study(**({"question": "?", "preset": "nano", "disable": ("mtp",)} | fields))


def planned(asked: Study, **options: Any) -> tuple[Plan, dict[str, RunSpec]]:
    base = asked.load_preset()
    named, design = variants(asked, base)
    return make_plan(asked, base, named, design, corpus_hash="corpus", corpus={}, **options)


def plan(asked: Study, **options: Any) -> Plan:
    return planned(asked, **options)[0]


def first_run(asked: Study) -> RunSpec:
    made, runs = planned(asked)
    return runs[made.variants[0].run_ids[0]]


def names(asked: Study) -> list[str]:
    return [v.name for v in variants(asked, asked.load_preset())[0]]


def test_disable_compares_the_full_recipe_with_it_less() -> None:
    with_it, less = variants(study(), study().load_preset())[0]
    assert with_it.levels == Variant.full(study().load_preset()).levels
    assert {n for n in with_it.levels if with_it.levels[n] != less.levels[n]} == {"mtp"}
    assert names(study(disable=("mtp", "mla"))) == ["full", "-mla -mtp"]


def test_what_depends_on_a_disabled_component_goes_with_it() -> None:
    assert names(study(disable=("moe",))) == ["full", "-moe -aux-free"]
    routed = study(disable=("moe",), alternatives={"moe": "coarse"})
    assert names(routed) == ["full", "moe=coarse"]


def test_enable_starts_from_nothing_but_prerequisites() -> None:
    added, bare = variants(study(disable=(), enable=("mla",)), study().load_preset())[0]
    assert bare.levels == Variant.none().levels
    assert added.levels == (Variant.none() | {"mla": "on"}).levels
    assert names(study(disable=(), enable=("aux-free",))) == ["+moe +aux-free", "+moe"]


def test_without_is_off_everywhere() -> None:
    for variant in variants(study(without=("fp8",)), study().load_preset())[0]:
        assert variant.levels["fp8"] == "bf16"
    assert names(study(without=("fp8",))) == ["full without fp8", "-mtp"]
    assert question(["mtp"], [], {}, ["fp8"]).endswith("worth in the full recipe without fp8?")
    with pytest.raises(ValueError, match="off in every variant of this study already"):
        names(study(without=("mtp",)))


def test_designs_have_every_feasible_variant_and_no_other() -> None:
    lattice = variants(study(design="lattice", disable=(), n_seeds=1), study().load_preset())[0]
    recipe = study().load_preset().recipe
    on_or_off = (Variant.of(dict.fromkeys(on, "on")) for n in range(len(recipe) + 1) for on in combinations(recipe, n))
    feasible = [variant for variant in on_or_off if not variant.unmet]
    assert sorted(map(str, (v.levels for v in lattice))) == sorted(str(variant.levels) for variant in feasible)
    assert len({seed for v in lattice for seed in v.seeds}) == len(feasible) / 4 + EXTRA_RUNS / 2
    assert sum(len(v.seeds) for v in lattice) == len(feasible) + EXTRA_RUNS
    last = names(study(design="leave-one-out", disable=(), n_seeds=2))
    assert last[0] == "full"
    assert len(last) == 1 + len(recipe)
    coarse = study(design="lattice", disable=("moe", "aux-free", "mtp"), alternatives={"moe": "coarse"}, n_seeds=2)
    assert len(names(coarse)) == 8


def test_controls_are_further_components_of_a_design() -> None:
    asked = study(design="lattice", disable=("mtp",), calibration=("placebo", "spike-flops"), n_seeds=1, block_size=1)
    made = plan(asked)
    assert len(made.variants) == 8
    assert len({v.run_ids[0] for v in made.variants}) == 8
    spiked = {v.levels["spike-flops"]: v for v in made.variants if v.levels["mtp"] == v.levels["placebo"] == "on"}
    assert spiked["on"].cost == spiked["off"].cost
    assert spiked["on"].n_steps * 1.25 == pytest.approx(spiked["off"].n_steps, rel=0.02)
    assert spiked["on"].flops == pytest.approx(spiked["off"].flops, rel=0.02)
    for variant in plan(study()).variants:
        assert "placebo" not in variant.levels
    with pytest.raises(ValueError, match="calibration names 'mtp'; there are: placebo"):
        study(calibration=("mtp",))


def test_equal_flops_are_equal_to_a_step() -> None:
    made = plan(study())
    for variant in made.variants:
        per_step = variant.cost["training_flops_per_token"] * made.tokens_per_step
        assert abs(variant.flops - made.budget) <= per_step / 2
        assert variant.flops == variant.n_steps * per_step
    assert made.variants[1].n_tokens > made.variants[0].n_tokens
    assert made.variants[0].n_tokens == preset("nano").n_tokens


def test_every_run_of_a_study_warms_up_for_as_many_steps() -> None:
    made, runs = planned(study(preset="cpu", n_seeds=2))
    few, many = (v.n_steps for v in made.variants)
    assert many > 1.2 * few
    assert {run.n_warmup_steps for run in runs.values()} == {round(0.15 * few)}
    for run in runs.values():
        assert [branch.n_warmup_steps for branch in run.branch_runs] == [run.n_warmup_steps] * 2


def test_equal_tokens_and_equal_seconds() -> None:
    tokens = plan(study(match="tokens", budget=3000.0))
    assert {v.n_tokens for v in tokens.variants} == {23 * 128}
    seconds = plan(study(match="seconds", budget=10.0), step_s={"full": 0.5, "-mtp": 0.25})
    assert [v.n_steps for v in seconds.variants] == [20, 40]
    # Trunks of 20 and 40 steps, with branches of 3 and 6.
    assert seconds.seconds(2) == pytest.approx(2 * (11.5 + 11.5) / 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"budget": 1.0}, "must be at least one step"),
        ({"match": "seconds"}, "--budget SECONDS"),
        ({"trainer": {"batch_size": 4, "micro_batch_size": 3}}, "must divide"),
        ({"trainer": {"batch": 4}}, "trainer.batch is unknown"),
        ({"trainer": {"learning_rate": "fast"}}, "trainer.learning_rate"),
        ({"trainer": {"sequence_length": 0}}, "trainer.sequence_length is 0; it must be at least 1"),
        ({"trainer": {"sequence_length": 1}}, "has none so far ahead"),
        ({"trainer": {"decay_share": 0.99}}, "sum to at most 1"),
    ],
)
def test_an_impossible_plan_is_one_sentence(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(study(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_seeds": 0}, "n_seeds is 0"),
        ({"budget": -1.0}, "budget is -1.0"),
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"confidence": 0.4}, "confidence is 0.4; it must lie between 0.5 and 1"),
        ({"margin_nats": float("inf")}, "margin_nats is inf"),
        ({"margin_nats": float("nan")}, "margin_nats is nan"),
        ({"margin_nats": -0.1}, "margin_nats is -0.1"),
        ({"disable": ("mtpp",)}, "did you mean 'mtp'"),
        ({"alternatives": {"mtp": "none"}}, "it has next-token, parallel-heads"),
    ],
)
def test_an_impossible_study_is_one_sentence(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study(**fields)


@pytest.mark.parametrize(("name", "axis"), [("dualpipe", "pipeline"), ("alltoall", "expert")])
def test_what_needs_ranks_says_so(name: str, axis: str) -> None:
    with pytest.raises(ValueError, match=f"{name} means something only where a run has several {axis} ranks"):
        plan(study(disable=(name,)))


def test_a_study_file_repeats_the_study(tmp_path: Path) -> None:
    asked = study(
        question='What is "mtp" \\ worth?\n',
        alternatives={"mtp": "parallel-heads"},
        budget=2.5e9,
        trainer={"learning_rate": 0.001},
        learning_rates={"mtp=parallel-heads": 0.002},
    )
    path = tmp_path / "study.toml"
    path.write_text(to_toml(asked))
    assert read_study(path) == asked
    assert plan(read_study(path)) == plan(asked)
    path.write_text("budgget = 3\n" + to_toml(asked))
    with pytest.raises(ValueError, match=r"study\.toml: budgget is unknown; did you mean 'budget'"):
        read_study(path)
    with pytest.raises(ValueError, match="learning_rates names '-mtpp', and did you mean '-mtp'"):
        plan(study(learning_rates={"-mtpp": 0.1}))


def test_a_tuned_rate_is_that_variants_own() -> None:
    made = plan(study(learning_rates={"-mtp": 0.25}))
    assert [v.learning_rate for v in made.variants] == [0.004, 0.25]


def test_a_run_is_named_by_all_that_decides_it_and_nothing_else() -> None:
    run = first_run(study())
    assert decode_run(encode(run)) == run
    without = {"without": ("distill",)}
    elsewhere = first_run(study(question="another", data="elsewhere", **without))
    assert elsewhere == first_run(study(**without))
    changes = [
        dataclasses.replace(run, seed=9),
        dataclasses.replace(run, n_steps=9),
        dataclasses.replace(run, corpus_hash="other"),
        dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, optimizer=AdamWNode(weight_decay=0.2))),
        dataclasses.replace(run, model=dataclasses.replace(run.model, rope_theta=1.0)),
    ]
    assert len({run_id(run), *map(run_id, changes)}) == 1 + len(changes)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "sweeps").glob("*.toml")), ids=lambda p: p.stem)
def test_the_study_files_of_the_repository_can_be_planned(path: Path) -> None:
    asked = read_study(path)
    rates = {} if asked.learning_rates == "tuned" else asked.learning_rates
    made = plan(dataclasses.replace(asked, learning_rates=rates, tuning=None, search=None))
    assert made.n_runs >= 4


def test_backends_of_a_study_reach_every_variant_that_has_the_part() -> None:
    asked = study(disable=("mla", "moe"), backends={"attention": "triton", "feed_forward": "triton", "norm": "triton"})
    assert read_study_text(to_toml(asked)) == asked
    with_it, less = (v.spec.model for v in variants(asked, asked.load_preset())[0])
    assert with_it.backends == {
        "attention": "triton",
        "feed_forward": "triton",
        "first_feed_forward": "auto",
        "balance": "auto",
        "linear": "auto",
        "norm": "triton",
        "head": "auto",
    }
    # Grouped-query attention has no kernel here, so its backend is not the study's to name.
    # So it is with the dense feed-forward.
    others = dict.fromkeys(("attention", "feed_forward", "first_feed_forward", "linear", "head"), "auto")
    assert less.backends == others | {"norm": "triton"}
    for backends, sentence in (
        ({"atention": "triton"}, "slot 'atention'; did you mean 'attention'"),
        ({"head": "cudnn"}, "head=cudnn has no effect"),
    ):
        with pytest.raises(ValueError, match=sentence):
            names(study(backends=backends))


def test_auto_is_replaced_before_a_run_has_its_name() -> None:
    spec = variants(study(), study().load_preset())[0][0].spec
    here, hopper = Machine(kind="cpu"), Machine(kind="cuda", name="NVIDIA H200", capability=(9, 0))
    assert "auto" in spec.model.backends.values()
    assert spec.for_machine(here).model.backends == {
        "attention": "library",
        "feed_forward": "library",
        "first_feed_forward": "library",
        "balance": "library",
        "linear": "emulated",
        "norm": "library",
        "head": "library",
    }
    wide = dataclasses.replace(spec, trainer=dataclasses.replace(spec.trainer, dtype="bfloat16"))
    assert wide.for_machine(hopper).model.backends == spec.for_machine(here).model.backends | {
        "attention": "cudnn",
        "linear": "library",
    }
    assert wide.for_machine(hopper).model.portable() == spec.for_machine(here).model
    assert spec.for_machine(here).for_machine(hopper) == spec.for_machine(here), "what is named stays named"


def read_study_text(text: str) -> Study:
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(text)
        file.flush()
        return read_study(Path(file.name))


def test_a_staged_design_is_planned_with_its_stages_and_an_optimal_one_with_its_order() -> None:
    staged = plan(study(design="staged", disable=())).design
    assert (staged.name, staged.order, staged.stages) == ("staged", None, 2)
    assert staged.confidence(0.95) == pytest.approx(0.975)
    optimal = plan(study(design="optimal", disable=(), n_runs=32, order=2)).design
    assert (optimal.order, optimal.stages) == (2, 1)


def test_a_plan_is_read_as_it_was_written() -> None:
    made = plan(study(design="lattice", disable=(), n_seeds=1))
    assert decode_plan(json.loads(to_json(encode(made)))) == made


def test_a_corpus_that_has_changed_is_told_from_another_study() -> None:
    then = dataclasses.replace(plan(study()), corpus={"source": "text", "hash": "a" * 64, "vocab_size": 320})
    now = dataclasses.replace(then, corpus={**then.corpus, "hash": "b" * 64, "left_out": {"blank": 1}})
    said = other_study(then, now)
    assert said.startswith(
        "this study on another text: text has changed since (hash aaaaaaaaaaaa then, bbbbbbbbbbbb now"
    )
    for other in (
        {"question": "!"},
        {"budget": 1.0},
        {"corpus": {**now.corpus, "max_bytes": 9}},
        {"corpus": then.corpus},
    ):
        assert other_study(then, dataclasses.replace(now, **other)).startswith("another study ('?')")


@pytest.mark.parametrize(
    "text", ['a "quoted" question', "two\nlines\tand a tab", "back\\slash and é, 漢", "# no comment", "\x7f"]
)
def test_awkward_texts_survive_the_study_file(tmp_path: Path, text: str) -> None:
    asked = study(question=text, alternatives={"mtp": "parallel-heads"}, trainer={"learning_rate": 1e-3})
    (tmp_path / "study.toml").write_text(to_toml(asked), encoding="utf-8")
    assert read_study(tmp_path / "study.toml") == asked
