"""Small corpora that prepare in a fraction of a second."""

from __future__ import annotations

from pathlib import Path

import pytest
from sample_text import paragraph


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four hundred documents in two levels of folders: enough for a split by whole documents."""
    root = tmp_path / "text"
    (root / "deep").mkdir(parents=True)
    for number in range(400):
        place = root / "deep" if number % 3 else root
        (place / f"{number}.txt").write_text(paragraph(number, lines=2), encoding="utf-8")
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"
