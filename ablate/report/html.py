"""The report as one HTML file that loads nothing from elsewhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from ablate.attribution.verdicts import GAIN, HARM, NO_EFFECT
from ablate.report.captions import captions
from ablate.report.content import ReportContent
from ablate.report.document import to_json
from ablate.report.figures import MAX_LINES, all_figures

TEMPLATES = Path(__file__).parent / "templates"
CLASSES = {GAIN: "gain", HARM: "harm", NO_EFFECT: "same"}
SECTIONS = (
    ("effects", "Effects"),
    ("loss", "Loss"),
    ("speed", "Speed and memory"),
    ("equal", "Held equal"),
    ("lost", "Lost runs"),
    ("limits", "Limits"),
    ("repeat", "Repeat"),
    ("provenance", "Provenance"),
)
# The dashes and markers of the figures, for the legend: SVG's dash arrays, and paths around the origin.
KEY_DASHES = ("none", "7 3", "2 2.5", "8 2.5 2 2.5", "4 2", "11 3")
KEY_MARKERS = (
    "M4 0A4 4 0 1 1 -4 0A4 4 0 1 1 4 0Z",
    "M-3.6 -3.6H3.6V3.6H-3.6Z",
    "M0 -5L5 0L0 5L-5 0Z",
    "M0 -4.5L4.5 4H-4.5Z",
    "M0 4.5L4.5 -4H-4.5Z",
    "M-1.4 -4.4H1.4V-1.4H4.4V1.4H1.4V4.4H-1.4V1.4H-4.4V-1.4H-1.4Z",
)


def render(content: ReportContent) -> str:
    """The whole page."""
    lines = [line.variant for line in content.curves if line.points][:MAX_LINES]
    names = lines or [v.name for v in content.result.variants][:MAX_LINES]
    keys = [{"name": n, "dash": KEY_DASHES[i], "marker": KEY_MARKERS[i]} for i, n in enumerate(names)]
    comparisons = content.result.comparisons
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            c=content,
            css=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
            figures=all_figures(content),
            keys=keys,
            sections=SECTIONS,
            verdict_class=lambda verdict: CLASSES.get(verdict, "open"),
            answer_class=CLASSES.get(comparisons[0].loss.verdict, "open") if len(comparisons) == 1 else "open",
            document=to_json(content),
            **captions(content),
        )
    )


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
