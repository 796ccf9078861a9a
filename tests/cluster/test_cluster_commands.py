"""simulate, evidence and answer --gap as a user types them."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from ablate import cli
from ablate.cluster.simulate import METRICS

V3 = ["simulate", "--cluster", "h800-2048", "--preset", "v3-671b"]


def test_json_has_every_metric_with_its_range() -> None:
    result = CliRunner().invoke(cli.app, [*V3, "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    for name in METRICS:
        assert document[name]["low"] <= document[name]["high"]
    assert document["evidence"] == "simulated"
    assert document["levels"]["dualpipe"] == document["levels"]["alltoall"] == "on"


def test_the_text_says_that_it_is_simulated_and_what_does_not_fit() -> None:
    result = CliRunner().invoke(cli.app, [*V3, "--disable", "fp8"])
    assert result.exit_code == 0
    assert result.output.startswith("Simulated, not measured")
    assert "DOES NOT FIT" in result.output


def test_evidence_prints_a_component() -> None:
    result = CliRunner().invoke(cli.app, ["evidence", "aux-free"])
    assert result.exit_code == 0
    assert "2.258 to 2.253" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simulate", "--cluster", "h800-2048"], "give --preset NAME or --model"),
        ([*V3, "--assume", "bf16_product=much"], "it takes a number"),
        ([*V3, "--attribute", "--search"], "give one of them"),
        ([*V3, "--attribute", "--disable", "mla"], "leave out --disable"),
        (["answer", "--gap", "v3-671b", "v3-671b"], "give two models"),
        (["answer", "--gap", "v2-236b", "v3-671b", "--brief"], "with --cluster and --json alone"),
        (["answer", "--study", "nowhere"], "holds no study"),
        (["answer", "--preset", "v3-67b"], "did you mean 'v3-671b'"),
        (["answer", "--cluster", "h800-204"], "did you mean 'h800-2048'"),
        (["evidence", "mlaa"], "did you mean 'mla'"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(cli.app, arguments)
    assert isinstance(result.exception, ValueError)
    assert said in str(result.exception)
    assert "\n" not in str(result.exception)
