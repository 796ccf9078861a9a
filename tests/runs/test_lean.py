"""Packages that are hidden while Lightning is loaded are there again afterwards, and others never go."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import pytest

from ablate.runs.executors.lean import hidden


def test_what_is_hidden_seems_not_installed_and_is_there_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "seaborn", raising=False)  # installed, and as if nobody had imported it
    before = version("seaborn")
    with hidden("seaborn", "pytest"):
        assert find_spec("seaborn") is None
        with pytest.raises(ModuleNotFoundError):
            import_module("seaborn")
        with pytest.raises(PackageNotFoundError):
            version("seaborn")
        assert import_module("pytest") is pytest, "what is imported already stays"
        assert version("pytest") == pytest.__version__
        import_module("wave")
    assert "wave" in sys.modules
    assert find_spec("seaborn") is not None
    assert version("seaborn") == before
