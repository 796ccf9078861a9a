"""The report as one Markdown file: the content of the HTML one, curves as a small table in place of figures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from ablate.report.captions import captions
from ablate.report.content import ReportContent
from ablate.report.html import template
from ablate.report.tables.table import Column, Table

SPECIAL = re.compile(r"([\\`*_{}\[\]#|!~$])")


class Markup(str):
    """Text that is Markdown already."""

    __slots__ = ()


def render(content: ReportContent) -> str:
    """The whole file."""
    commands = verbatim("\n".join(content.repeat))
    names = {"table": partial(table, links=content.links), "verbatim": verbatim, "commands": commands} | captions(
        content
    )
    # Every expression of the template goes through `escape`, as autoescape does it for HTML.
    rendered: str = template("report.md.j2", finalize=escape).render(c=content, **names)
    return rendered


def escape(value: object) -> str:
    """Plain text as Markdown that shows it and does nothing: no markup, no HTML, no links."""
    if isinstance(value, Markup):
        return value
    text = str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
    # GitHub links bare addresses by their colon or their www.
    text = text.replace("://", ":&#47;&#47;").replace("www.", "www&#46;").replace("@", "&#64;")
    return SPECIAL.sub(r"\\\1", text)


def table(found: Table, links: Mapping[str, str] = MappingProxyType({})) -> Markup:
    """A table as its title in bold, a pipe table, and its note; runs in `links` lead to their records."""
    rule = ["---:" if column.numeric else ":---" for column in found.columns]
    rows = [
        [escape(column.label) for column in found.columns],
        rule,
        *([_cell(c, column, links) for c, column in zip(r, found.columns, strict=True)] for r in found.rows),
    ]
    lines = [f"**{escape(found.title)}**", "", *(f"| {' | '.join(row)} |" for row in rows)]
    return Markup("\n".join(lines + ["", escape(found.note)] if found.note else lines))


def _cell(cell: str, column: Column, links: Mapping[str, str]) -> str:
    return f"[{cell}]({links[cell]})" if column.label == "Run" and cell in links else escape(cell)


def verbatim(text: str) -> Markup:
    """A code block whose fence is longer than any run of backquotes inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}\n{text}\n{fence}")
