"""What benchmarks/ imports and names is there: nothing else reads these files before a machine with a GPU runs them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "benchmarks").iterdir() if path.suffix in (".py", ".sh"))
# Also in the text of a `python -c`, where no linter looks.
IMPORT = re.compile(r"from (ablate[\w.]*) import (\([^)]*\)|[\w, ]+)|import (ablate[\w.]*)")


def imported(text: str) -> list[tuple[str, str]]:
    """(module, name) of everything that a text imports from ablate; no name where the module itself is imported."""
    found = []
    for module, names, alone in IMPORT.findall(text):
        parts = [part.split()[0] for part in re.sub(r"#.*", "", names).strip("()").split(",") if part.strip()]
        found += [(module, name) for name in parts] if module else [(alone, "")]
    return found


def missing(text: str) -> list[str]:
    """What a text imports from ablate and is not there."""
    found = []
    for module, name in imported(text):
        try:
            if not hasattr(importlib.import_module(module), name or "__name__"):
                importlib.import_module(f"{module}.{name}")
        except ModuleNotFoundError as fault:
            found.append(str(fault))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_imported_is_there(path: Path) -> None:
    assert missing(path.read_text(encoding="utf-8")) == []


def test_what_is_missing_is_seen() -> None:
    text = """x=$(python -c 'from ablate.kernels.launch import this_machine, nothing; import ablate.gone')
from ablate.kernels import (
    table,  # a module
    absent,
)"""
    assert imported(text)[0] == ("ablate.kernels.launch", "this_machine")
    assert len(missing(text)) == 3


def test_the_files_that_gpu_sh_names_exist() -> None:
    text = (ROOT / "benchmarks" / "gpu.sh").read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/])(?:(?:tests|ablate|benchmarks)/[\w/]+|cli)\.(?:py|sh)\b", text))
    assert "benchmarks/gpu_stages.py" in named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
