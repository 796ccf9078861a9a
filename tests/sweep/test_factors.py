"""Factors become the right variants, and what cannot be is refused with a sentence that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from factor_study import planned, study

from ablate.presets import preset
from ablate.runs.factors import read_factors
from ablate.runs.study import read_study, to_toml
from ablate.sweep.variants import variants

EXPERTS = {"moe.n_routed_experts": [8, 16, 32]}


def named(**fields: Any) -> dict[str, Any]:
    asked = study(**({"preset": "nano"} | fields))
    return {v.name: v for v in variants(asked, asked.load_preset())[0]}


def test_any_field_of_a_preset_can_be_a_factor() -> None:
    found = named(factors=EXPERTS | {"model.rope_theta": [1e4, 5e5]})
    assert len(found) == 6
    assert next(iter(found)) == "moe.n_routed_experts=8, model.rope_theta=10000.0"
    last = found["moe.n_routed_experts=32, model.rope_theta=500000.0"]
    assert (last.spec.model.feed_forward.n_routed_experts, last.spec.model.rope_theta) == (32, 5e5)
    assert last.levels["moe.n_routed_experts"] == "32"
    assert last.upper == ("model.rope_theta",)
    assert all(v.seeds == (0, 1, 2, 3) for v in found.values())


def test_a_field_without_quotes_is_the_same_factor(tmp_path: Path) -> None:
    head = 'question = "?"\npreset = "nano"\n[factors]\n'
    found = []
    for i, line in enumerate(('"moe.n_routed_experts" = [8, 16]', "moe.n_routed_experts = [8, 16]")):
        (tmp_path / f"{i}.toml").write_text(head + line)
        found.append(read_study(tmp_path / f"{i}.toml"))
    assert found[0].crossed == found[1].crossed
    (tmp_path / "again.toml").write_text(to_toml(found[0]))
    assert read_study(tmp_path / "again.toml") == found[0]


def test_levels_of_a_component_and_linked_fields() -> None:
    scopes = named(factors={"alternative.aux-free": ["on", "batch-aux", "none"]})
    assert [v.levels["aux-free"] for v in scopes.values()] == ["on", "batch-aux", "none"]
    assert scopes["aux-free=batch-aux"].spec.model.balance.kind == "aux-loss"
    depths = [{"label": 0, "alternative.mtp": "next-token"}, {"label": 1, "mtp.mtp_depth": 1},
              {"label": 2, "mtp.mtp_depth": 2}]  # fmt: skip
    found = named(factors={"depth": depths})
    assert [v.spec.model.objective.kind for v in found.values()] == ["next-token", "mtp", "mtp"]
    assert found["depth=2"].spec.model.objective.mtp_depth == 2


def test_factors_are_crossed_with_what_the_design_compares() -> None:
    found = named(disable=("mtp",), factors=EXPERTS)
    assert len(found) == 6
    assert "-mtp at moe.n_routed_experts=16" in found
    assert found["-mtp at moe.n_routed_experts=16"].spec.model.objective.kind == "next-token"
    left_out = named(design="leave-one-out", disable=("mtp", "fp8"), factors=EXPERTS)
    assert len(left_out) == 9


def test_a_factor_of_two_levels_is_laid_out_among_the_components_of_a_lattice() -> None:
    asked = study(preset="nano", design="lattice", disable=("mtp", "fp8"), n_seeds=2,
                  factors={"trainer.warmup_share": [0.05, 0.1]})  # fmt: skip
    plan, _ = planned(asked)
    assert len(plan.variants) == 8
    seeds = [v.seeds for v in plan.variants]
    assert len({s for each in seeds for s in each}) > 2, "blocks of seeds, not every seed on all"
    assert {v.upper for v in plan.variants} == {(), ("trainer.warmup_share",)}


def test_a_ladder_has_each_size_with_its_own_tokens_and_warm_up() -> None:
    plan, runs = planned(study(disable=("mtp",), factors={"preset": ["nano", "cpu"]}))
    assert plan.preset == "nano"
    reference = {v.levels["preset"]: v for v in plan.variants if v.levels["mtp"] == "on"}
    for name, v in reference.items():
        assert v.n_tokens == pytest.approx(preset(name).n_tokens, rel=0.02)
    warm_ups: dict[str, set[int]] = {"nano": set(), "cpu": set()}
    for v in plan.variants:
        warm_ups[v.levels["preset"]] |= {runs[i].n_warmup_steps for i in v.run_ids}
    for size in ("nano", "cpu"):
        shortest = min(v.n_steps for v in plan.variants if v.levels["preset"] == size)
        assert warm_ups[size] == {preset(size).trainer.warmup_steps(shortest)}


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        ({"moe.n_routed_expert": [8, 16]}, "did you mean 'n_routed_experts'"),
        ({"moo.n_routed_experts": [8, 16]}, "did you mean 'moe'"),
        ({"moe.n_activated_experts": [2, 16]}, "the cell moe.n_activated_experts=16"),
        ({"alternative.aux-free": ["on", "batch"]}, "aux-free has no alternative 'batch'"),
        ({"alternative.auxfree": ["on", "none"]}, "aux-free"),
        ({"preset": ["nano", "cpi"]}, "did you mean 'cpu'"),
        ({"moe.n_routed_experts": [8]}, "at least two"),
        ({"moe.n_routed_experts": [8, 8]}, "2 times"),
        ({"moe.n_routed_experts": 8}, "takes a list"),
        ({"recipe": [[], ["mla"]]}, "alternative.NAME"),
        ({"moe.n_routed_experts": [8, "many"]}, "many"),
        ({"moe.n_routed_experts": [8, {"moe.route_scale": 2.0}]}, "mixes values with tables"),
        ({"a": [{"moe.route_scale": 1.0}, {"moe.route_scale": 2.0}], "moe.route_scale": [1.0, 3.0]}, "both set"),
        ({"trainer.learning_rate": [1e-3, 2e-3]}, "the study sets it for every variant too"),
    ],
)
def test_what_cannot_be_is_refused(factors: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        named(factors=factors, trainer={"learning_rate": 1e-3})


def test_a_factor_that_changes_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="are the same run"):
        named(without=("distill", "mtp"), factors={"mtp.mtp_depth": [1, 2]})
    with pytest.raises(ValueError, match="are the same run"):
        named(budget=1e9, factors={"n_tokens": [4096, 8192]})
    assert len(named(factors={"n_tokens": [4096, 8192]})) == 2
    with pytest.raises(ValueError, match="leave it to the factor"):
        named(disable=("aux-free",), factors={"alternative.aux-free": ["on", "none"]})


def test_too_many_combinations_are_told_before_they_are_made() -> None:
    factors = {f"moe.{i}": list(range(100)) for i in "abc"}
    with pytest.raises(ValueError, match="1,000,000 combinations"):
        named(factors=factors)
    assert len(read_factors(factors)) == 3


def test_margin_and_preset_are_one_number_and_one_name() -> None:
    assert study(preset="nano", margin=0.02).margin_nats == 0.02
    assert study(preset="nano", primary_metric="compute", margin=0.1).margin_nats == 0.005
    assert study(preset="nano", primary_metric="compute").primary_margin == 0.02
    for wrong, said in (
        ({"preset": "nano", "margin": 0.02, "margin_nats": 0.01}, "give one of them"),
        ({"preset": "nano", "primary_metric": "lss"}, "did you mean 'loss'"),
        ({}, "preset is missing"),
        ({"preset": "cpu", "factors": {"preset": ["nano", "cpu"]}}, "leave the field out"),
    ):
        with pytest.raises(ValueError, match=said):
            study(**wrong)
