"""The report as one HTML file that loads nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ablate.attribution.verdicts import GAIN, HARM, NO_EFFECT
from ablate.report.captions import captions
from ablate.report.content import ReportContent
from ablate.report.document import to_json
from ablate.report.figures import all_figures
from ablate.report.figures.canvas import SIDES

TEMPLATES = Path(__file__).parent / "templates"
CLASSES = {GAIN: "gain", HARM: "harm", NO_EFFECT: "same"}
SECTIONS = (
    ("asked", "Asked"),
    ("effects", "Effects"),
    ("loss", "Loss"),
    ("speed", "Speed and memory"),
    ("equal", "Held equal"),
    ("lost", "Lost runs"),
    ("limits", "Limits"),
    ("repeat", "Repeat"),
    ("provenance", "Provenance"),
)


def render(content: ReportContent) -> str:
    """The whole page."""
    comparisons = content.result.comparisons
    return template("report.html.j2", autoescape=True).render(
        c=content,
        css=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        figures=all_figures(content),
        sides=SIDES,
        sections=SECTIONS,
        verdict_class=_verdict_class,
        answer_class=_verdict_class(comparisons[0].loss.verdict if len(comparisons) == 1 else ""),
        document=to_json(content),
        **captions(content),
    )


def _verdict_class(verdict: str) -> str:
    return CLASSES.get(verdict, "open")


def template(name: str, **options: Any) -> Any:
    """One of the report's templates, in an environment of jinja2 with these options."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATES)
    return Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True, **options).get_template(
        name
    )
