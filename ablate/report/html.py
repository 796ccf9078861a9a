"""The report as one HTML file that loads nothing from elsewhere and is whole without its script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ablate.attribution.verdicts import GAIN, HARM, NO_EFFECT
from ablate.report.captions import captions
from ablate.report.content import ReportContent
from ablate.report.document import to_json
from ablate.report.figures import all_figures
from ablate.report.figures.canvas import SIDES, VARIABLES
from ablate.report.figures.channels import COLORS
from ablate.report.figures.gantt import kinds

TEMPLATES = Path(__file__).parent / "templates"
CLASSES = {GAIN: "gain", HARM: "harm", NO_EFFECT: "same"}
DIGITS = 7  # of a float in the page; `report --format json` has all


def render(content: ReportContent) -> str:
    """The whole page."""
    comparisons = content.result.comparisons
    figures = all_figures(content)
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    return template("report.html.j2", autoescape=True).render(
        c=content,
        css=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        figures=figures,
        sides=SIDES,
        channel_colours={name: VARIABLES[color] for name, color in COLORS.items()},
        timeline_looks=kinds(content.timelines),
        sections=tuple(_sections(content, figures)),
        links=content.links,
        verdict_class=_verdict_class,
        answer_class=_verdict_class(comparisons[0].loss.verdict if len(comparisons) == 1 else ""),
        document=_rounded(to_json(content)),
        **captions(content),
    )


def _sections(content: ReportContent, figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The links at the head: identifier and name of each section that is there."""
    settings = content.tuning or content.search
    known = {
        ("waterfall", "Waterfall"): figures["waterfall"],
        ("effects", "Effects"): True,
        ("interactions", "Interactions"): figures["interactions"],
        ("loss", "Loss"): True,
        ("watched", "Beside the loss"): figures["watched"] or content.routing.rows,
        ("pareto", "Loss against time"): figures["pareto"],
        ("faster", "Why"): figures["channels"] or content.compute.channels.rows,
        ("timeline", "Ranks"): figures["timeline"],
        ("beside", "Beside theirs"): content.beside.rows,
        ("settings", "Settings"): settings,
        ("trust", "Trust"): True,
        ("tables", "Tables"): True,
        ("limits", "Limits"): True,
        ("repeat", "Repeat and cite"): True,
        ("provenance", "Provenance"): True,
    }
    yield from (section for section, there in known.items() if there)


def _rounded(value: Any) -> Any:
    """The document with floats of DIGITS significant digits: what a page carries must not outgrow the page."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _verdict_class(verdict: str) -> str:
    """The colour of a verdict; one that is not decided beyond the margin has none, here as in the forest."""
    return CLASSES.get(verdict, "open")


def template(name: str, **options: Any) -> Any:
    """One of the report's templates, in an environment of jinja2 with these options."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATES)
    return Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True, **options).get_template(
        name
    )
