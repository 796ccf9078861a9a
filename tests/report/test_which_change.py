"""The page of the answer: the same cells in every form, links that lead somewhere, nothing that executes."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import answer_study as study
import pytest

from ablate.evidence.changes.content import AnswerContent
from ablate.report import which_change
from ablate.report.which_change.links import Linked
from ablate.report.which_change.render import verdict_of

HOSTILE = '<script>alert(1)</script> "><img src=x onerror=alert(2)> [a](javascript:alert(3)) | $x$'


class Parsed(HTMLParser):
    """Elements with their attributes, and the texts of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.inside = True
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[AnswerContent, Path, dict[str, str]]:
    """Two sizes, with a question that tries to get out of the page."""
    folder = tmp_path_factory.mktemp("page")
    small = study.lattice(folder / "small", {"mla": 1.1, "mtp": 0.9})
    large = study.lattice(folder / "large", {"mla": 1.3, "mtp": 0.9}, size=4.0)
    plan = json.loads((small / "plan.json").read_text())
    (small / "plan.json").write_text(json.dumps(plan | {"question": HOSTILE}))
    with pytest.MonkeyPatch.context() as patch:
        content = study.answer(patch, [small, large], equalities=folder / "none")
    out = folder / "out" / "deep"
    files = which_change.files(content, out)
    out.mkdir(parents=True)
    for name, text in files.items():
        (out / name).write_text(text)
    return content, out, files


def test_every_form_has_the_sentences_and_the_cells_of_the_table(made: tuple) -> None:
    content, out, files = made
    page, cells = which_change.page(content, out), Parsed(files["report.html"]).cells
    for row in page.overview.rows:
        for cell in row:
            assert cell in cells
    plain = files["report.md"].replace("\\", "")
    for sentence in page.sentences:
        assert sentence.partition(": ")[2] in plain
    assert json.loads(files["report.json"])["answer"] == list(page.sentences)
    assert len(page.overview.rows) == len(content.changes) == 8


def test_links_of_the_page_lead_to_what_is_there(made: tuple) -> None:
    _, out, files = made
    found = [a["href"] for tag, a in Parsed(files["report.html"]).elements if tag == "a"]
    found += re.findall(r"\]\(([^)]+)\)", files["report.md"])
    assert any(href.startswith("https://arxiv.org/abs/") for href in found if href)
    local = {href for href in found if href and not href.startswith(("http", "#", "javascript"))}
    assert {"../../small", "../../large/records", "picture.svg"} <= local
    for href in local:
        assert (out / href).exists(), href


def test_nothing_from_a_study_gets_out_of_its_cell(made: tuple) -> None:
    _, _, files = made
    parsed = Parsed(files["report.html"])
    assert [a for tag, a in parsed.elements if tag == "script"] == [{"type": "application/json", "id": "report-data"}]
    assert not [tag for tag, a in parsed.elements if tag == "img" or any(name.startswith("on") for name in a)]
    assert HOSTILE in parsed.cells
    assert "](javascript" not in files["report.md"].replace("\\]", "")
    assert "default-src 'none'" in files["report.html"]


def test_the_picture_stands_alone_and_shows_every_size(made: tuple) -> None:
    _, _, files = made
    drawing = ElementTree.fromstring(files[which_change.PICTURE])
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    used = set(re.findall(r"var\((--[\w-]+)\)", files[which_change.PICTURE]))
    assert all(f"{name}:" in files[which_change.PICTURE] for name in used)
    texts = " ".join(filter(None, (e.text for e in drawing.iter())))
    for said in ("1.30×", "0.90×", "equal by design", "not measured", "15.2×"):
        assert said in texts


def test_the_same_records_give_the_same_bytes(made: tuple) -> None:
    content, out, files = made
    again = which_change.files(content, out)
    assert {n: t for n, t in again.items() if n.startswith("report")} == {
        n: t for n, t in files.items() if n.startswith("report")
    }


def test_the_part_for_a_readme_is_the_answer_picture_and_table(made: tuple) -> None:
    content, out, _ = made
    page = which_change.page(content, out)
    said = which_change.brief(page, "reports/answer/picture.svg")
    assert said.count("\n- ") + said.startswith("- ") == len(page.sentences)
    assert "](reports/answer/picture.svg)" in said
    assert said.count("\n| ") == len(page.overview.rows) + 2


def test_verdicts_have_their_colours() -> None:
    assert verdict_of("at 429 k: 1.05× (1.03 to 1.07), gain") == "gain"
    assert verdict_of("at 429 k: 1.05× (1.03 to 1.07), gain, perhaps negligible") == "gain"
    assert verdict_of("at 429 k: 1.05× (1.03 to 1.07), not resolved") == ""
    assert verdict_of("disagrees: ours is a harm, papers report a gain") == "harm"


def test_a_link_is_cleaned_and_keeps_its_address() -> None:
    found = Linked("a\nb\x1b[31m", "../x")
    assert found == "a b [31m"
    assert found.href == "../x"
