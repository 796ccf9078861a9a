"""The gap between two models: factors that multiply to it, a path that multiplies to its second, honest rows."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from ablate.cluster.question import Request
from ablate.evidence.gap import dense_of_size, gap_document, identity, path, totals
from ablate.evidence.simulation import attributed

LLAMA, V3 = totals("llama3-405b"), totals("v3-671b")


def test_the_identity_of_llama_and_v3() -> None:
    """11.6 = 1.05 x 10.1 x 1.09, from 30.84 M and 2.664 M hours, 15.6 and 14.8 T tokens, 2,524 and 249.8 GFLOP."""
    found = identity(LLAMA, V3)
    factors = {name: factor["estimate"] for name, factor in found["factors"].items()}
    assert found["gpu_hours_ratio"]["estimate"] == pytest.approx(11.576, abs=1e-3)
    assert factors["tokens"] == pytest.approx(1.054, abs=1e-3)
    assert factors["flops_per_token"] == pytest.approx(10.10, abs=1e-2)
    assert factors["flops_per_s"] == pytest.approx(1.087, abs=2e-3)
    assert math.prod(factors.values()) == pytest.approx(found["gpu_hours_ratio"]["estimate"])
    assert sum(factor["share_of_log"] for factor in found["factors"].values()) == pytest.approx(1.0)
    for factor in found["factors"].values():
        assert factor["low"] <= factor["estimate"] <= factor["high"]


def test_the_path_of_flops_multiplies_to_the_factor() -> None:
    steps = path(LLAMA, V3)
    assert math.prod(step["factor"] for step in steps) == pytest.approx(LLAMA.flops_per_token / V3.flops_per_token)
    assert [step["step"].partition(" ")[0] for step in steps] == ["the", "sequences", "dense,", "moe", "mla"]


def test_between_two_models_with_experts_there_is_no_path() -> None:
    steps = path(totals("v2-236b"), V3)
    assert len(steps) == 2
    assert "no path" in steps[1]["step"]


def test_the_dense_step_has_as_many_parameters() -> None:
    dense = dense_of_size(V3).cost(4096).main
    assert dense.parameters == pytest.approx(V3.model.cost(4096).main.parameters, rel=1e-4)
    assert dense.activated == dense.parameters


@pytest.mark.slow
def test_simulated_rows_are_against_the_second_model() -> None:
    document, text = gap_document("llama3-405b", "v3-671b", "h800-2048")
    assert "11.58 times" in text
    rows = {row["variant"]: row for row in document["simulated"]["rows"]}
    assert rows["the second model"]["seconds_per_token_factor"] == {"estimate": 1.0, "low": 1.0, "high": 1.0}
    single = [rows[name]["seconds_per_token_factor"]["estimate"] for name in rows if name.startswith("with")]
    assert min(single) > 1.0
    assert rows["without all three"]["seconds_per_token_factor"]["estimate"] == max(single)
    dense = rows["the first model there"]["seconds_per_token_factor"]
    assert 5 < dense["low"] < dense["high"] < 15


def test_totals_of_the_users_own(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        'title = "x"\npreset = "llama3-8b"\ntokens = 1e12\ngpu_hours = 1e5\ndevice = "H100"\n'
        'flops_per_s = 989e12\nsource = "a test"\n'
    )
    assert totals(str(own)).totals.tokens == 1e12
    with pytest.raises(ValueError, match="did you mean 'v3-671b'"):
        totals("v3-67b")
    with pytest.raises(ValueError, match="give two models"):
        gap_document("v3-671b", "v3-671b", "h800-2048")


@pytest.mark.slow
def test_shares_of_speed_add_up_to_the_whole() -> None:
    document, text = attributed(Request(cluster="h800-2048", preset="v3-671b"))
    components = document["components"]
    assert set(components) == {"mla", "moe", "aux-free", "mtp", "fp8", "dualpipe", "alltoall"}
    owen = sum(effect["owen"]["estimate"] for effect in components.values())
    assert owen == pytest.approx(document["total"]["estimate"])
    for effect in components.values():
        parts = effect["channels_of_owen"]
        assert sum(part["estimate"] for part in parts.values()) == pytest.approx(effect["owen"]["estimate"])
    assert components["aux-free"]["owen"]["estimate"] == pytest.approx(0, abs=1e-12)
    assert not components["aux-free"]["resolved"]
    assert "Simulated" in text
