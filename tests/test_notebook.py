"""Studies from Python: the import is light, mistakes are ValueErrors, and results are data frames and a report."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import fake_study as fake
import pytest

import ablate
from ablate import Study, report, sweep
from ablate.runs.plan import Plan
from ablate.runs.study import read_study, to_toml


def test_importing_the_package_imports_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import ablate; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "heavy = {'torch', 'numpy', 'pandas', 'pydantic', 'typer', 'rich', 'scipy'}; assert not new & heavy, new; "
        "import ablate.sweep.run; assert callable(ablate.sweep) and ablate.sweep.run.run_study; "
        "from ablate import Study, sweep; assert callable(sweep); assert 'torch' not in sys.modules; "
        "assert not hasattr(ablate, 'sweeep')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_study_takes_what_a_file_takes(tmp_path: Path) -> None:
    asked = Study(question="?", preset="nano", disable=["mtp"], factors={"moe.route_scale": [1.0, 2.0]})
    (tmp_path / "study.toml").write_text(to_toml(asked))
    same = read_study(tmp_path / "study.toml")
    assert dataclasses.asdict(same) == dataclasses.asdict(asked)
    assert dataclasses.replace(asked, n_seeds=3).n_seeds == 3


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"questoin": "?"}, "did you mean 'question'"),
        ({"question": "?", "preset": "nano", "n_seeds": "many"}, "n_seeds is 'many'"),
        ({"question": "?", "preset": "nano", "disable": ["mtpp"]}, "did you mean 'mtp'"),
        ({"preset": "nano"}, "question is missing"),
    ],
)
def test_mistakes_are_value_errors(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Study(**fields)


def test_results_are_read_without_a_run(tmp_path: Path) -> None:
    found = report(fake.write_study(tmp_path / "s", fake.plan(), fake.records()))
    (row,) = found.effects.to_dict("records")
    assert (row["component"], row["verdict"], row["n"]) == ("mtp", "gain", 5)
    assert row["low"] < row["estimate"] < row["high"] < 0
    assert len(found.runs) == 10
    assert found.runs["nats_per_token"].notna().all()
    assert "<iframe" in found._repr_html_()
    assert found._repr_markdown_().startswith("# Is multi-token")
    assert "multi-token" in repr(found)


def test_a_dry_run_gives_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablate.sweep.run.measure_all", lambda jobs, **options: dict.fromkeys(jobs, 0.01))
    study = Study(question="?", preset="nano", disable=["mtp"], without=["distill"], n_seeds=2)
    plan = sweep(study, out=tmp_path / "s", dry_run=True)
    assert isinstance(plan, Plan)
    assert plan.n_runs == 4
    assert not (tmp_path / "s").exists()
    assert ablate.Study is Study
