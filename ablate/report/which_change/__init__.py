"""The page of which change mattered: what `answer` knows, laid out as HTML, Markdown, JSON and for the terminal.

`files` gives the page, its picture and its data by name for a folder; `brief` is the part that a README begins with.
The same records give the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path

from ablate.evidence.changes.content import AnswerContent
from ablate.evidence.changes.document import document
from ablate.report.which_change.figure import panels
from ablate.report.which_change.page import Page, page
from ablate.report.which_change.picture import picture
from ablate.report.which_change.render import brief, to_html, to_markdown

__all__ = ["AnswerContent", "brief", "document", "files", "page"]

PICTURE = "picture.svg"


def files(content: AnswerContent, out: Path) -> dict[str, str]:
    """Name -> text of every file of the page, with links as seen from `out`."""
    found: Page = page(content, out)
    drawn = panels(content)
    return {
        "report.html": to_html(found, drawn),
        "report.md": to_markdown(found, PICTURE),
        "report.json": json.dumps(document(content, out), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        PICTURE: picture(drawn),
    }
