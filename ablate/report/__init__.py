"""Reports of a study, from its folder alone: one content value, laid out as HTML, Markdown, JSON or for the terminal.

`build` reads the folder, `write` puts `report.html` and `report.md` into it, `to_json` is the document for programs
(its keys are described in `ablate.report.document`), and `ablate.report.text.render` is for people at a terminal.
The same folder gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ablate.files import replace_file
from ablate.report.content import ReportContent, build
from ablate.report.document import to_json
from ablate.report.html import render as to_html
from ablate.report.markdown import render as to_markdown

__all__ = ["ReportContent", "build", "to_json", "write"]

RENDERERS = {"html": to_html, "md": to_markdown}


def write(content: ReportContent, formats: Sequence[str] = ("html", "md")) -> list[Path]:
    """Put the report beside its study, each file whole or not at all; the formats are keys of RENDERERS."""
    texts = {content.folder / f"report.{name}": RENDERERS[name](content) for name in formats}
    for path, text in texts.items():
        replace_file(path, text)
    return list(texts)
