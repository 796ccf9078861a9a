"""Which configuration and which backend is chosen on which machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ablate.spec.measured
from ablate.bench.tune import encode
from ablate.kernels import table
from ablate.kernels.launch import machine_of
from ablate.kernels.table import Configuration, Table, forced
from ablate.spec.backends import resolve_backend
from ablate.spec.machine import Machine

HERE = Machine(kind="cpu")
HOPPER = Machine(kind="cuda", name="NVIDIA H200", capability=(9, 0))
AMPERE = replace(HOPPER, name="NVIDIA A100-SXM4-80GB", capability=(8, 0))
SMALL = {"when": {"D": [None, 64]}, "blocks": {"BLOCK_D": 64}, "num_warps": 1, "num_stages": 3}
LARGE = {"blocks": {"BLOCK_D": 128}}


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of what an H200 has measured; empty at first."""
    monkeypatch.setattr(ablate.spec.measured, "FOLDER", tmp_path)
    table.forget()
    return tmp_path / "h200.json"


@pytest.fixture
def shipped(tmp_path: Path) -> Table:
    path = tmp_path / "kernel.json"
    path.write_text(json.dumps({"sm_90": {"norm": {"choices": [SMALL, LARGE], "candidates": [SMALL]}}}))
    return Table(path)


@pytest.mark.usefixtures("measured")
def test_the_first_choice_whose_bounds_hold(shipped: Table) -> None:
    small = shipped.choose("norm", HOPPER, D=64)
    assert small.options == {"BLOCK_D": 64, "num_warps": 1, "num_stages": 3}
    assert shipped.choose("norm", HOPPER, D=65).blocks == {"BLOCK_D": 128}
    assert shipped.used["norm"] == [small, shipped.choose("norm", HOPPER, D=65)]
    assert len(shipped.candidates("norm", "sm_90")) == 2


def test_a_switch_is_written_and_read_as_one(tmp_path: Path) -> None:
    path = tmp_path / "kernel.json"
    path.write_text(json.dumps({"sm_90": {"norm": {"choices": [{"blocks": {"BLOCK_D": 8, "FLATTEN": False}}]}}}))
    (found,) = Table(path).shipped("norm", "sm_90")
    assert found.options == {"BLOCK_D": 8, "FLATTEN": False, "num_warps": 4, "num_stages": 2}
    assert encode(found)["blocks"]["FLATTEN"] is False


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("machine", [HERE, AMPERE], ids=str)
def test_a_machine_without_a_table_is_told_what_to_do(shipped: Table, machine: Machine) -> None:
    with pytest.raises(ValueError, match=r"kernel norm for .*\(D=8\).*backend library.*--tune"):
        shipped.choose("norm", machine, D=8)


def test_what_this_very_device_has_measured_goes_first(shipped: Table, measured: Path) -> None:
    document = {"kernels": {"norm": {"choices": [{"blocks": {"BLOCK_D": 32}}]}}, "backends": {"norm": "triton"}}
    measured.write_text(json.dumps(document))
    table.forget()
    assert shipped.choose("norm", HOPPER, D=64).blocks == {"BLOCK_D": 32}
    h100 = replace(HOPPER, name="NVIDIA H100 80GB HBM3")
    assert (HOPPER.slug, h100.slug) == ("h200", "h100-80gb-hbm3")
    assert shipped.choose("norm", h100, D=64).blocks == {"BLOCK_D": 64}
    obstacles = {"library": "", "triton": ""}
    assert resolve_backend("norm", "auto", HOPPER, obstacles) == "triton"
    assert resolve_backend("norm", "auto", h100, obstacles) == "library"
    assert resolve_backend("norm", "library", HOPPER, obstacles) == "library"
    assert resolve_backend("norm", "auto", HOPPER, {"library": "", "triton": "it is off"}) == "library"


@pytest.mark.parametrize(
    "content",
    ["", "{", "[" * 100_000, "[]", '{"kernels": 1}', '{"kernels": {"norm": []}}',
     '{"kernels": {"norm": {"choices": 1}}}',
     '{"kernels": {"norm": {"choices": [{"blocks": {"D": "x"}}]}}}', '{"kernels": {"norm": {"choices": [{"x": 1}]}}}',
     '{"kernels": {"norm": {"choices": [{"when": {"D": [1]}}]}}}', '{"kernels": {}, "kernels": {}}'],
)  # fmt: skip
def test_a_table_of_measured_choices_that_is_none_is_named(content: str, shipped: Table, measured: Path) -> None:
    measured.write_text(content)
    table.forget()
    with pytest.raises(ValueError, match=f"the table of measured choices {measured}"):
        shipped.choose("norm", HOPPER, D=64)


@pytest.mark.usefixtures("measured")
def test_forced_inside_and_nowhere_else(shipped: Table) -> None:
    other = Configuration(blocks={"BLOCK_D": 16})
    with forced("norm", other):
        assert shipped.choose("norm", HOPPER, D=64) == other
    assert shipped.choose("norm", HOPPER, D=64) != other


def test_backends_that_cannot_run_are_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"norm\.backend is 'triton', and no GPU .*here there are: auto, library"):
        resolve_backend("norm", "triton", HERE, {"library": "", "triton": "no GPU"})
    with pytest.raises(ValueError, match=r"norm\.backend is 'magic'; there are: auto, library"):
        resolve_backend("norm", "magic", HERE, {"library": ""})


@pytest.mark.parametrize(
    ("machine", "expected"),
    [(HERE, (False, "cpu")), (AMPERE, (False, "sm_80")), (HOPPER, (True, "sm_90"))],
    ids=str,
)
def test_kernels_run_on_hopper_alone(machine: Machine, expected: tuple[bool, str]) -> None:
    assert (machine.runs_triton, machine.architecture) == expected
    assert replace(HERE, interpreted=True).runs_triton


def test_a_tensor_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match=r"on meta; it runs on a CUDA device of compute capability 9\.0"):
        machine_of(torch.device("meta"))
