"""Reports of a study, from its folder alone: one content value, laid out as HTML, Markdown, JSON or for the terminal.

`build` reads the folder, `write` puts `report.html` and `report.md` into it, `to_json` is the document for programs
(its keys are described in `ablate.report.document`), and `ablate.report.text.render` is for people at a terminal.
The same folder gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ablate.report.content import ReportContent, build
from ablate.report.document import to_json
from ablate.runs.store import replace_file

__all__ = ["FORMATS", "ReportContent", "as_text", "build", "to_json", "write"]

FORMATS = ("html", "md", "json")


def as_text(content: ReportContent, form: str) -> str:
    """The report as the text of a file of one of FORMATS; ValueError for another."""
    if form == "html":
        from ablate.report.html import render

        return render(content)
    if form == "md":
        from ablate.report.markdown import render as render_markdown

        return render_markdown(content)
    if form == "json":
        return json.dumps(to_json(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    raise ValueError(f"format {form!r} is unknown; there are: {', '.join(FORMATS)}")


def write(folder: Path, formats: Sequence[str] = ("html", "md"), *, content: ReportContent | None = None) -> list[Path]:
    """Put the report of the study in `folder` beside it; each file whole or not at all. The paths, in order.

    content: what `build(folder)` gave, where the caller has it already.
    """
    content = build(folder) if content is None else content
    texts = {folder / f"report.{form}": as_text(content, form) for form in formats}
    for path, text in texts.items():
        replace_file(path, text)
    return list(texts)
