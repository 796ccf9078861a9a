"""Attacks by text: what stands in a study's files may be HTML, a script or a terminal's escapes, and stays text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from fault_ground import Try

import ablate.report as reports
from ablate.files import sealed
from ablate.report import text as terminal
from ablate.runs.record import Failure
from ablate.runs.store import Store
from ablate.spec.decoding import encode

PAYLOADS = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'><body onload=alert(1)>",
    "<iframe src=javascript:alert(1)></iframe>",
    '<a href="javascript:alert(1)">x</a>',
    "<!--<script>alert(1)//-->",
    "]]><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</svg><script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}<b>",
    "<math><mtext></table><mglyph><style><img src=x onerror=alert(1)>",
    "&lt;script&gt;alert(1)&lt;/script&gt;<script>",
    "\x1b]0;alert\x07\x1b[31m<script>",
    "<scr\0ipt>alert(1)</scr\0ipt>",
    '<meta http-equiv="refresh" content="0;url=//example.org">',
    "<link rel=stylesheet href=//example.org/x.css>",
    "\u202e<form action=//example.org><input autofocus onfocus=alert(1)>",
)
FIELDS = (
    "question",
    "hypothesis",
    "preset",
    "preset title",
    "variant",
    "corpus",
    "reason of a divergence",
    "reason of a failure",
    "traceback",
    "processor",
    "package",
    "backend",
    "attempt",
    "system",
    "study file",
)

LEADING = ("href", "src", "srcset", "action", "formaction", "xlink:href")  # to what is run or loaded


class Structure(HTMLParser):
    """The elements of a page with the names of their attributes, and the content of those that run or load."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[Any] = []
        self.running = ""
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(sorted(name for name, _ in attrs))))
        self.running = tag if tag in ("script", "style") else ""
        for name, value in attrs:
            if name.startswith("on") or (name in LEADING and not (value or "").startswith("#")):
                self.found.append((tag, name, value))

    def handle_endtag(self, tag: str) -> None:
        self.found.append(f"/{tag}")
        self.running = ""

    def handle_data(self, data: str) -> None:
        if not self.running:
            self.words.append(data)

    def handle_comment(self, data: str) -> None:
        self.found.append(("comment", data))


def shown(this: Try) -> None:
    """One payload in every field that a report shows: the page has the elements that it has with plain words there."""
    payload = PAYLOADS[this.index % len(PAYLOADS)]
    this.cases = len(FIELDS)
    pages = {}
    for name, form in (("plain", "word"), ("payload", payload)):
        this.out.parent.mkdir(exist_ok=True)
        out = this.place / name
        shutil.copytree(this.ground.whole, out)
        fill(out, lambda field, form=form: f"{form} {FIELDS.index(field)}q")
        content = reports.build(out)
        reports.write(content)
        pages[name] = (out / "report.html").read_text(encoding="utf-8")
        said = terminal.render(content, [])
        _no_escapes(this, said)
        json.dumps(reports.to_json(content), allow_nan=False)
    structures = {name: Structure() for name in pages}
    for name, page in pages.items():
        structures[name].feed(page)
    plain, other = structures["plain"].found, structures["payload"].found
    if plain != other:
        at = next((i for i, (a, b) in enumerate(zip(plain, other, strict=False)) if a != b), -3)
        this.fail("wrong", f"{payload!r}: the page's elements differ: {other[at : at + 3]}")
    text = " ".join(structures["payload"].words)
    missing = [field for i, field in enumerate(FIELDS) if f" {i}q" not in text]
    this.cases -= len(missing)
    this.notes += [f"not shown in the page, so not tried: {', '.join(missing)}"] if missing else []


def _no_escapes(this: Try, said: Any) -> None:
    """A terminal sees no control characters that were a study's."""
    from rich.console import Console

    console = Console(width=200, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(said)
    if "\x1b" in captured.get() or "\x07" in captured.get():
        this.fail("wrong", "a terminal's escape is printed as it is")


def fill(out: Path, text: Callable[[str], str]) -> None:
    """Put a text into every field, in files that are sealed as they should be."""
    store = Store(out)
    plan = _opened(store.plan_file)
    plan |= {"question": text("question"), "hypothesis": text("hypothesis"), "preset": text("preset")}
    plan |= {"preset_title": text("preset title")}
    plan["corpus"]["source"] = text("corpus")
    plan["variants"][1]["name"] = text("variant")
    _put(store.plan_file, plan)
    first, second, third, *_ = sorted(store, key=lambda record: record.run_id)
    environment = dict(first.environment) | {"processor": text("processor"), "system": text("system")}
    environment["packages"] = {"torch": text("package")}
    _put(store.records / f"{first.run_id}.json", encode(replace(
        first, environment=environment, backends={"attention": text("backend"), "device": "cpu"},
        attempts=({"name": text("attempt")}, {"name": "2"}),
    )))  # fmt: skip
    diverged = replace(second, status="diverged", reason=text("reason of a divergence"), metrics={"diverged_step": 3.0})
    _put(store.records / f"{second.run_id}.json", encode(diverged))
    (store.records / f"{third.run_id}.json").unlink()
    store.note_failure(Failure(
        run_id=third.run_id, variant={}, seed=third.seed, reason=text("reason of a failure"),
        traceback=text("traceback"), time_s=0.0,
    ))  # fmt: skip
    store.study_file.write_text(store.study_file.read_text() + f"\n# {text('study file')}\n", encoding="utf-8")


def _opened(path: Path) -> dict[str, Any]:
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"}


def _put(path: Path, data: dict[str, Any]) -> None:
    path.unlink()
    path.write_text(sealed(data), encoding="utf-8")


KINDS: dict[str, Callable[[Try], None]] = {"S2 HTML, scripts and escapes in a study's texts": shown}
