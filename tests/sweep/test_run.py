"""A study before its runs: what is refused and when, whose the folder is, and how many run at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablate.files import to_json
from ablate.runs.conduct import Outcome
from ablate.runs.plan import Plan, read_plan
from ablate.runs.record import RunRecord
from ablate.runs.store import Store
from ablate.runs.study import Study
from ablate.spec.decoding import encode
from ablate.sweep import run as sweep
from ablate.sweep.estimate import Estimate
from ablate.sweep.folder import check_writable
from ablate.sweep.run import Options, StudyRun, parallel, run_study


class Quiet:
    """A display that shows nothing."""

    def say(self, message: str) -> None: ...

    def show_plan(self, plan: Plan, n_parallel: int, folder: Path, time: Estimate) -> None: ...

    def follow(self, plan: Plan, n_parallel: int) -> Any:
        return lambda event: None

    def end(self) -> None: ...


@pytest.fixture
def conduct(small_text: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a study of two variants on a small text, whose runs and speeds are played; counts the measurements."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_text.parent / "cache"))
    measured = list[Any]()
    monkeypatch.setattr(sweep, "execute_all", lambda jobs, store, executor, **_: Outcome())
    monkeypatch.setattr(sweep, "start_server", lambda: None)

    def conducted(out: Path, step_s: float = 0.01, hook: Any = None, **fields: Any) -> StudyRun:
        def measure_all(jobs: Mapping[str, Any], **how: Any) -> dict[str, float]:
            measured.append(how)
            if hook:
                hook()
            return dict.fromkeys(jobs, step_s)

        monkeypatch.setattr(sweep, "measure_all", measure_all)
        asked = Study(**({"question": "?", "preset": "nano", "disable": ("mtp",), "without": ("distill",)} | fields))
        asked = replace(asked, data=str(small_text))
        return run_study(asked, Options(out=out, n_parallel=2), Quiet())

    conducted.measured = measured  # type: ignore[attr-defined]
    return conducted


def run_ids(done: StudyRun) -> list[str]:
    return [identity for variant in done.plan.variants for identity in variant.run_ids]


def unusable(folder: Path) -> dict[str, Path]:
    (folder / "file").write_text("")
    (folder / "dangling").symlink_to(folder / "nowhere" / "at-all")
    (folder / "taken").mkdir()
    (folder / "taken" / "records").write_text("")
    return {
        "in a file": folder / "file" / "study",
        "a file": folder / "file",
        "in a system folder": Path("/proc/study"),
        "a link to nothing": folder / "dangling",
        "a name that is too long": folder / ("x" * 300),
        "with a file in the way": folder / "taken",
    }


def test_an_unusable_folder_is_refused_before_anything_is_read_or_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conduct: Any
) -> None:
    monkeypatch.setattr(sweep, "prepare_texts", lambda *_: pytest.fail("the corpus was prepared"))
    for why, folder in unusable(tmp_path).items():
        with pytest.raises(ValueError, match=r"cannot write to .*; choose another folder with --out") as refused:
            conduct(folder)
        assert str(folder) in str(refused.value), why
    assert conduct.measured == []


def test_looking_whether_a_folder_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_plan_refuses_is_refused_before_speeds_are_measured(tmp_path: Path, conduct: Any) -> None:
    with pytest.raises(ValueError, match="at least one step"):
        conduct(tmp_path / "study", match="tokens", budget=1.0)
    with pytest.raises(ValueError, match="no budget says how many"):
        conduct(tmp_path / "study", match="seconds")
    conduct(tmp_path / "study")
    for other in ({"disable": ("mla",)}, {"match": "seconds", "budget": 1.0}):
        with pytest.raises(ValueError, match=r"holds another study \('\?'\); choose another folder"):
            conduct(tmp_path / "study", **other)
    assert conduct.measured == []
    assert not list(tmp_path.rglob(".write-*"))


def test_a_budget_in_seconds_is_measured_carefully_and_means_the_same_steps_again(tmp_path: Path, conduct: Any) -> None:
    first = conduct(tmp_path / "study", step_s=0.01, match="seconds", budget=1.0)
    again = conduct(tmp_path / "study", step_s=0.02, match="seconds", budget=1.0)
    assert [v.n_steps for v in first.plan.variants] == [100, 100]
    assert again.plan == first.plan
    assert conduct.measured == [{"n_parallel": 2, "n_rounds": 3, "seconds": 2.0}]
    conduct(tmp_path / "other", match="flops")
    assert len(conduct.measured) == 1


def test_of_identical_commands_at_once_the_later_takes_the_plan_of_the_earlier(tmp_path: Path, conduct: Any) -> None:
    """Each measured other speeds, and so would train other numbers of steps."""
    place, done = tmp_path / "study", list[StudyRun]()
    seconds = {"match": "seconds", "budget": 1.0}
    later = conduct(place, 0.02, hook=lambda: done.append(conduct(place, 0.01, **seconds)), **seconds)
    assert run_ids(later) == run_ids(done[0])
    assert read_plan(Store(place).plan_file) == later.plan
    with pytest.raises(ValueError, match="holds another study"):
        conduct(tmp_path / "two", hook=lambda: conduct(tmp_path / "two", disable=("mla",), **seconds), **seconds)


@pytest.mark.parametrize("match", ["flops", "seconds"])
def test_a_damaged_plan_is_written_anew_unless_only_it_names_the_runs(tmp_path: Path, conduct: Any, match: str) -> None:
    asked = {"match": match, "budget": 1.0 if match == "seconds" else None}
    first = conduct(tmp_path / "study", 0.01, **asked)
    store = Store(tmp_path / "study")
    store.plan_file.write_text(to_json(encode(first.plan))[:100])
    if match == "flops":
        store.commit(RunRecord(run_id=run_ids(first)[0], status="finished", spec={}, variant={}))
    again = conduct(tmp_path / "study", 0.02, **asked)
    assert (run_ids(again) == run_ids(first)) == (match == "flops")
    assert read_plan(store.plan_file) == again.plan
    store.plan_file.write_text("{}")
    store.commit(RunRecord(run_id="f" * 16, status="finished", spec={}, variant={}))
    with pytest.raises(ValueError, match="of runs that only this plan names"):
        conduct(tmp_path / "study", **asked)
    assert store.plan_file.read_text() == "{}"


def test_as_many_run_at_a_time_as_have_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    def n_parallel(parameters: int, asked: int | None = None) -> int:
        costs: Any = {"full": SimpleNamespace(trained_parameters=parameters)}
        return parallel(costs, asked)

    monkeypatch.setattr(sweep, "has_gpu", lambda: False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(sweep, "_available_bytes", lambda: 64 * 10**9)
    assert [n_parallel(p) for p in (10**6, 50_000_000, 2 * 10**9, 10**12)] == [16, 4, 2, 1]
    assert n_parallel(10**6, asked=3) == 3
    with pytest.raises(ValueError, match="--jobs is 0"):
        n_parallel(10**6, asked=0)
    monkeypatch.setattr(sweep, "has_gpu", lambda: True)
    assert n_parallel(10**6) == 1
