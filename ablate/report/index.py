"""An index over a folder of studies: what each asked, what it found, and where its report is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ablate.files import replace_file
from ablate.quantities import plural, scaled
from ablate.report.content import ReportContent, build
from ablate.report.html import TEMPLATES, template
from ablate.report.markdown import escape

PLAN = "plan.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One study: its folder's name and what its report says first; `why`: the reason that it has no report."""

    name: str
    question: str
    answer: str
    facts: str
    reports: tuple[str, ...]  # file names that are there
    why: str = ""


def entries(folder: Path) -> tuple[Entry, ...]:
    """The studies right below a folder, by name. ValueError where there is none."""
    studies = sorted(path.parent for path in folder.glob(f"*/{PLAN}"))
    if not studies:
        raise ValueError(f"{folder} has no study right below it (no */{PLAN}); give a folder of studies")
    return tuple(_entry(study) for study in studies)


def _entry(study: Path) -> Entry:
    there = tuple(name for name in ("report.html", "report.md") if (study / name).is_file())
    try:
        content = build(study)
    except ValueError as error:
        return Entry(name=study.name, question="", answer="", facts="", reports=there, why=str(error))
    return Entry(
        name=study.name,
        question=content.question,
        answer=content.answer[0],
        facts=", ".join(_facts(content)),
        reports=there,
    )


def _facts(content: ReportContent) -> Iterator[str]:
    result = content.result
    counts = Counter(run.status for run in result.runs)
    yield f"preset {result.plan.preset}"
    yield f"{scaled(result.variants[0].planned.cost.get('total_parameters'))} parameters"
    yield plural(len(result.variants), "variant")
    yield ", ".join(plural(n, f"{status} run") for status, n in counts.items())


def write(folder: Path) -> list[Path]:
    """Write index.html and index.md into the folder of studies; the links in them are relative."""
    found = entries(folder)
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    html = template("index.html.j2", autoescape=True).render(entries=found, css=css)
    paths = [folder / "index.html", folder / "index.md"]
    for path, text in zip(paths, (html, _markdown(found)), strict=True):
        replace_file(path, text)
    return paths


def _markdown(found: tuple[Entry, ...]) -> str:
    lines = ["# Studies", ""]
    for entry in found:
        links = ", ".join(f"[{name}]({entry.name}/{name})" for name in entry.reports) or "no report written yet"
        said = escape(entry.answer) if not entry.why else f"No report: {escape(entry.why)}"
        lines += [
            f"## {escape(entry.name)}",
            "",
            escape(entry.question),
            "",
            said,
            "",
            f"{escape(entry.facts)}: {links}",
            "",
        ]
    return "\n".join(lines)
