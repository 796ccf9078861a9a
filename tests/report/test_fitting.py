"""A table at a terminal: whole words at every width, and what is left out is named."""

from __future__ import annotations

from io import StringIO

import pytest

from ablate.report.fitting import Fitting

HEADS = ("Change", "FLOPs/token", "KV bytes", "tokens/s", "saved at 429 k", "interval", "verdict", "papers")
ROW = ("aux-free", "1.00×", "1.01×", "unresolved", "0.99×", "0.96–1.02", "decided", "disagree")


@pytest.mark.parametrize("width", range(30, 130, 7))
def test_no_cell_is_cut_at_any_width(width: int) -> None:
    from rich.console import Console

    out = StringIO()
    Console(width=width, file=out).print(Fitting("T", HEADS, [ROW], 1))
    lines = out.getvalue().splitlines()
    words = " ".join(lines).split()
    assert max(map(len, lines)) <= width
    n = next((i for i, cell in enumerate(ROW) if cell not in words), len(ROW))
    assert n >= 2
    assert not [cell for cell in ROW[n:] if cell in words], "the columns that are left out are the last"
    assert not [head for head in HEADS[:n] for word in head.split() if word not in words]
    said = " ".join(words).partition("too narrow for ")[2].partition(";")[0]
    assert said.replace(" and ", ", ").split(", ") == (list(HEADS[n:]) if n < len(ROW) else [""])
