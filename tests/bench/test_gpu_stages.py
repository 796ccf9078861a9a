"""The stages for a borrowed GPU: each fits one call, all together leave nothing out, and each runs here without one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ablate.bench.command import GROUPS

ROOT = Path(__file__).parents[2]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


stages = load("gpu_stages")


@pytest.mark.parametrize("name", list(stages.STAGES))
def test_a_stage_fits_one_call(name: str) -> None:
    stage = stages.STAGES[name]
    assert 0 < stage.limit_s <= stages.STAGE_S
    assert len(stage.files(name)) == len(set(stage.files(name))) <= stages.MOST_FILES


def test_nothing_is_left_out_and_nothing_is_done_twice() -> None:
    groups = [group for name in stages.ALL for group, _ in stages.STAGES[name].groups]
    assert sorted(groups) == sorted([*GROUPS, "step"])
    tests = [test for stage in stages.STAGES.values() for test in stage.tests]
    there = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "kernels").glob("test_*.py")}
    assert sorted([*tests, *stages.WITHOUT_DEVICE]) == sorted(there)
    for name in stages.WITHOUT_DEVICE:
        assert "DEVICE" not in (ROOT / "tests" / "kernels" / f"test_{name}.py").read_text(encoding="utf-8"), name


@pytest.mark.slow  # a minute or two each: interpreted kernels
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", list(stages.STAGES))
def test_a_dry_run_of_a_stage(name: str, tmp_path: Path) -> None:
    """With WHEELS, where this Python lacks what `gpu.sh wheels` fetches: as on the machine that they are carried to."""
    wheels = os.environ.get("WHEELS", str(tmp_path / "none"))
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path), "WHEELS": wheels}
    environment |= {"PYTHONPATH": str(ROOT)}
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), name, "--smoke"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    log = (tmp_path / f"{name}.log").read_text(encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr + log[-3000:]
    wanted = {f.replace("kernels.", "norm.") if name == "tune" else f for f in stages.STAGES[name].files(name)}
    assert {path.name for path in tmp_path.iterdir()} == wanted
    for path in tmp_path.glob("*.json"):
        assert json.loads(path.read_text(encoding="utf-8"))


CASES = """
import pytest
def test_right(): pass
def test_wrong(): assert 1 == 2
def test_after(): pass
@pytest.mark.skip(reason="cuBLAS does not take it")
def test_skipped(): pass
"""


def test_a_failing_case_stops_no_other_and_each_is_written(tmp_path: Path) -> None:
    (tmp_path / "test_cases.py").write_text(CASES)
    log = tmp_path / "cases.jsonl"
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", ".", "-q", "-p", "benchmarks.case_log"]
    environment = {**os.environ, "CASES": str(log), "PYTHONPATH": str(ROOT)}
    code = subprocess.run(
        [*command, "test_cases.py"], cwd=tmp_path, env=environment, capture_output=True, check=False
    ).returncode
    cases = [json.loads(line) for line in log.read_text().splitlines()]
    assert code == 1
    assert [case["outcome"] for case in cases] == ["passed", "failed", "passed", "skipped"]
    assert "assert 1 == 2" in cases[1]["why"]
    text = stages.cases_as_markdown("correctness", cases, code)
    assert "| test_cases.py | 2 | 1 | 1 |" in text
    assert "cuBLAS does not take it" in text


def test_a_group_goes_on_after_the_device_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process loses it to one implementation; the second is given what there is, and its faults are told."""
    runner = stages.Runner("fp8-attention", tmp_path, smoke=False, preset="")
    told: list[list[str]] = []
    lost = [["linear map", "library"]]

    def call(command: list[str], limit_s: float, **_: Any) -> int:
        told.append(command)
        document = {"lost": lost, "faults": ["the device was lost"], "operations": [], "steps": [], "skipped": []}
        (tmp_path / "fp8.json").write_text(json.dumps(document))
        return 1

    monkeypatch.setattr(runner, "_call", call)
    runner._bench("fp8", 100)
    assert len(told) == 2
    assert all("--resume" in command for command in told)
    assert runner.faults == ["fp8: the device was lost"]
