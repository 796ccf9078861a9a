"""Faults at the real command line: every damaged file is told by name, and nothing is lost, torn or wrong."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
N_FAULTS = 60
AS_A_WHOLE = (
    "F3 SIGKILL of everything at a write",
    "F7 a write refused (full, quota, read-only, rights, EIO)",
    "F8 damaged record",
    "F8 damaged plan",
    "F8 damaged checkpoint",
)  # with the same command given again


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import faults

        return faults


@pytest.fixture(scope="module")
def ground(faults: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = faults.Ground(tmp_path_factory.mktemp("ground"))
    made.write_text()
    made.run(made.whole)
    made.stop()
    return made


def test_damaged_files_are_told(faults: ModuleType, ground: Any) -> None:
    kinds = [faults.DAMAGES[i % len(faults.DAMAGES)] for i in range(N_FAULTS - len(AS_A_WHOLE))]
    tries = [faults.attempt(ground, kind, i, seed=0, thorough=False) for i, kind in enumerate(kinds)]
    assert [each for each in tries if each["found"]] == []


@pytest.mark.parametrize("kind", AS_A_WHOLE)
def test_the_same_command_mends_it(kind: str, faults: ModuleType, ground: Any) -> None:
    found = faults.attempt(ground, kind, N_FAULTS + AS_A_WHOLE.index(kind), seed=0)
    assert found["found"] == {}, found["notes"]


def test_a_campaign_goes_on_where_it_was_stopped(faults: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "tries.jsonl"
    assert faults.done_before(path) == []
    path.write_text(
        '{"index": 0, "kind": "F8 damaged plan", "met": true, "cases": 1, "found": {"torn": 2}}\n{"index": 1, "ki'
    )
    tries = faults.done_before(path)
    assert [each["index"] for each in tries] == [0]
    table = faults.table(tries).splitlines()
    assert "| F8 damaged plan | 1 | 1 | 1 | 0 | 0 | 2 | 0 | 0 | 0 |" in table
    assert table[-1] == "| sum | 1 | 1 | 1 | 0 | 0 | 2 | 0 | 0 | 0 |"
