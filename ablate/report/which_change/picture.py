"""The picture as a file of its own, for a README: the panels side by side, in the report's colours, light and dark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from ablate.report.figures.canvas import Panel
from ablate.report.html import TEMPLATES

GAP, HEAD = 18.0, 26.0  # units between panels, and above them for their titles
VIEW = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')


def picture(panels: Sequence[Panel]) -> str:
    """SVG that needs no page around it."""
    parts, at, height = [], 0.0, 0.0
    for panel in panels:
        found = VIEW.search(panel.svg)
        assert found is not None
        width, own = (float(value) for value in found.groups())
        inner = re.sub(r'style="aspect-ratio[^"]*"', f'x="{at:g}" y="{HEAD:g}" width="{width:g}" height="{own:g}"',
                       panel.svg, count=1)  # fmt: skip
        parts.append(f'<text x="{at + 4:g}" y="15" class="title">{escape(panel.title)}</text>\n{inner}')
        at, height = at + width + GAP, max(height, own)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {at - GAP:g} {height + HEAD:g}" role="img" '
        f'aria-label="Each change by each kind of evidence">\n<style>\n{_colors()}'
        "svg { background: var(--paper); } .title { font: 600 11px var(--sans); fill: var(--ink); }\n"
        "</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _colors() -> str:
    """The variables of the report's style sheet, for both themes."""
    sheet = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    light = sheet[sheet.index(":root") : sheet.index("}") + 1]
    start = sheet.index("@media screen and (prefers-color-scheme: dark)")
    return f"{light}\n{sheet[start : sheet.index('}', sheet.index('}', start) + 1) + 1]}\n"
