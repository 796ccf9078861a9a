"""Studies whose runs are played, on a small text: the whole path from a study to its report without training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ablate.runs.searching import Parameter, Search
from ablate.runs.study import Study

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RATE = {"trainer.learning_rate": Parameter(low=1e-3, high=5e-2, log=True)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """A study on a small text, and the module that plays its runs."""

    runs: ModuleType
    study: Study
    out: Path

    def conduct(self, study: Study | None = None, **options: Any) -> list[str]:
        """Conduct a study. Returns what was said."""
        from ablate.sweep.conduct import conduct
        from ablate.sweep.run import Options

        display = self.runs.Quiet()
        conduct(study or self.study, Options(out=self.out, n_parallel=2, **options), display)
        return display.said

    def searching(self, **fields: Any) -> Study:
        """The study with a search of the learning rate."""
        return replace(self.study, search=Search(**({"parameters": RATE, "trials": 6} | fields)))

    def attempts(self, folder: str = "search") -> int:
        """Runs that were begun."""
        return len(list((self.out / folder / "runs").glob("*/attempts/*")))


@pytest.fixture(scope="session")
def small_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text and the cache beside it, prepared once."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("\n\n".join(f"line {i} of {i * i} and {i % 7} others" for i in range(3000)))
    return text


@pytest.fixture
def played(tmp_path: Path, small_text: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import played_runs

    monkeypatch.setenv("XDG_CACHE_HOME", str(small_text.parent / "cache"))
    played_runs.play(monkeypatch, seconds=0.0)
    monkeypatch.setattr("ablate.sweep.run.start_server", lambda: None)  # which imports torch, for runs that are none
    study = Study(
        question="?", preset="nano", disable=("mtp",), without=("distill",), data=str(small_text), budget=2e8, n_seeds=3
    )
    return Played(runs=played_runs, study=study, out=tmp_path / "out")
