"""The answer's page as HTML and as Markdown, by the templates and the escaping of the reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ablate.attribution.verdicts import GAIN, HARM, NO_EFFECT
from ablate.evidence.changes.measured import PERHAPS_GAIN, PERHAPS_HARM
from ablate.evidence.changes.reported import AGREES, DISAGREES
from ablate.report.figures.canvas import Panel
from ablate.report.html import TEMPLATES, template
from ablate.report.markdown import Markup, escape, table, verbatim
from ablate.report.tables.table import Table
from ablate.report.which_change.links import Linked
from ablate.report.which_change.page import SECTIONS, Page

# How a cell ends -> the class of its text. The kinds of verdict are the reports' own.
ENDINGS = {
    f", {GAIN}": "gain", f", {PERHAPS_GAIN}": "gain", f", {HARM}": "harm", f", {PERHAPS_HARM}": "harm",
    f", {NO_EFFECT}": "same",
}  # fmt: skip
STARTS = {AGREES: "gain", DISAGREES: "harm"}


def to_html(page: Page, panels: Sequence[Panel]) -> str:
    """One file that loads nothing from elsewhere."""
    css = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "answer.css"))
    rendered: str = template("answer.html.j2", autoescape=True).render(
        p=page, panels=panels, css=css, sections=SECTIONS, verdict_of=verdict_of
    )
    return rendered


def to_markdown(page: Page, picture: str) -> str:
    """One file, with the picture beside it."""
    names = {"table": _linked_table, "verbatim": verbatim, "link": _link}
    rendered: str = template("answer.md.j2", finalize=escape).render(p=page, picture=picture, **names)
    return rendered


def brief(page: Page, picture: str) -> str:
    """What a README begins with: the sentences, the picture and the table, as Markdown."""
    head = [f"- {escape(sentence)}" for sentence in page.sentences]
    image = f"![{escape(page.figure_alt)}]({picture})"
    return "\n".join([*head, "", image, "", _linked_table(replace(page.compact, title="", note=""), bare=True), ""])


def verdict_of(cell: str) -> str:
    """The class of a cell of verdicts: that of its last one, or of the comparison with the papers."""
    for ending, name in ENDINGS.items():
        if cell.endswith(ending):
            return name
    return next((name for start, name in STARTS.items() if cell.startswith(f"{start}:")), "")


def _link(cell: object) -> Markup | str:
    """A cell that leads somewhere as a link of Markdown."""
    if isinstance(cell, Linked):
        return Markup(f"[{escape(cell)}]({cell.href.replace(' ', '%20')})")
    return str(cell)


def _linked_table(found: Table, *, bare: bool = False) -> Markup:
    rows = tuple(tuple(_link(cell) for cell in row) for row in found.rows)
    shown = table(replace(found, rows=rows))
    return Markup(shown.partition("\n\n")[2]) if bare else shown
