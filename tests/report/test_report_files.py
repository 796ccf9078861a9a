"""The files of a report: nothing in them executes or loads, the same bytes each time, the same cells in each form."""

import base64
import dataclasses
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import fake_study as fake
import pytest
from matplotlib.figure import Figure

from ablate.report import build, to_json, write
from ablate.report.figures import all_figures
from ablate.report.figures.effects import Row, forest, rows
from ablate.report.html import render as to_html
from ablate.report.markdown import render as to_markdown
from ablate.spec.decoding import data_id

PARTS = (
    "<script>alert(1)</script>",
    '"><img src=http://evil.example/x onerror=alert(1)>',
    "</style></script><script>alert(2)</script>",
    "</pre><iframe src='javascript:alert(3)'></iframe>",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{1}{$ ]]> <!-- -->",
    "[link](javascript:alert(4)) ![i](http://evil.example/i.png) `code` | cell",
    "<svg onload=alert(5)>",
)
# All of them in every field, each time with another in front: a figure shows the beginning of a name only.
PAYLOADS = tuple(" ".join(PARTS[i:] + PARTS[:i]) for i in (0, 1, 5, 6))


class Page(HTMLParser):
    """Every element, and the text of every table."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.tables, self.ids = [], [], []
        self.cell = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.cell = ""

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self.cell)
            self.cell = None


def hostile(tmp_path, payload):
    """A study with the payload in every field that comes from outside."""
    name, part = f"-mtp {payload}", payload.replace("/", "-")
    full = {payload: "on"} | fake.FULL
    off = full | {payload: "off", "mtp": f"next {payload}"}
    variants = [fake.variant("full", full, range(5)), fake.variant(name, off, range(5))]
    plan = fake.plan(variants, question=payload, preset=payload, preset_title=payload, design=payload,
                     corpus={"source": payload, payload: payload})  # fmt: skip
    records = fake.records()[:5] + [fake.record(name, s, x, off) for s, x in enumerate(fake.WITHOUT_LOSSES)]
    environment = {**records[0].environment, "packages": {"torch": payload, payload: "1"}, "device": payload}
    records = [
        dataclasses.replace(
            r, environment=environment, backends={payload: payload}, evidence={"speed": payload, payload: payload},
            metrics={**r.metrics, part: 1.0, f"{part}_nats_per_token": 2.0 + r.seed},
            spec={**r.spec, "trainer": {**r.spec["trainer"], payload: payload}},
        )
        for r in records
    ]  # fmt: skip
    records = fake.changed(records, name, 4, status="diverged", reason=payload, metrics={}, curve=())
    records = fake.without(records, "full", 3)
    names = {r.run_id: data_id(r.spec) for r in records}
    for variant in variants:
        variant["run_ids"] = [names.get(run, run) for run in variant["run_ids"]]
    records = [dataclasses.replace(r, run_id=names[r.run_id]) for r in records]
    folder = fake.write_study(tmp_path / "study", plan, records, [fake.failure("full", 3, payload)])
    (folder / "study.toml").write_text(f"question = '''{payload}'''\n````\n", encoding="utf-8")
    return build(folder)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return build(fake.write_study(tmp_path_factory.mktemp("reports") / "study", fake.plan(), fake.records()))


@pytest.fixture(scope="module")
def html(content):
    return to_html(content)


@pytest.mark.parametrize("payload", PAYLOADS, ids=("script", "attribute", "math", "markdown"))
def test_html_shows_a_payload_and_does_nothing_of_it(tmp_path, payload):
    text = to_html(hostile(tmp_path, payload))
    page = Page(text)
    scripts = [attrs for tag, attrs in page.elements if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "report-data"}, {}]
    assert not {"img", "iframe", "object", "embed", "link", "base", "form"} & {tag for tag, _ in page.elements}
    for _, attrs in page.elements:
        assert not [name for name in attrs if name.startswith("on") or name in ("src", "xlink:href", "action")]
        assert re.fullmatch(r"#.*|records/[0-9a-f]{16}\.json", attrs.get("href", "#"))
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert text.count("<style") == 1
    assert text.count("</script>") == 2
    assert PARTS[0] in "".join(cell for table in page.tables for row in table for cell in row)


def apart(markdown):
    """The prose of a Markdown text, and what is in its fences."""
    fence = re.compile(r"^(`{3,})\n(.*?)^\1\n", flags=re.MULTILINE | re.DOTALL)
    return fence.sub("", markdown), "".join(found[1] for found in fence.findall(markdown))


@pytest.mark.parametrize("payload", PAYLOADS, ids=("script", "attribute", "math", "markdown"))
def test_markdown_is_inert(tmp_path, payload):
    text = to_markdown(hostile(tmp_path, payload))
    # The study's file is in fences that it cannot close; a fence shows everything as it is.
    prose, fenced = apart(text)
    assert PARTS[0] in fenced
    assert "`````\n" in text
    assert "<" not in prose
    assert "http://" not in prose
    assert not re.search(r"(?<!\\)(\[link|\[i|`code|!\[|\{%)", prose.replace("```\n", ""))
    tables = re.findall(r"(?:^\|.*\n)+", prose, flags=re.MULTILINE)
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_the_page_forbids_everything_but_its_own_style_and_script(html):
    page = Page(html)
    policies = [a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert re.findall(r"script-src ([^;]*);", policies[0]) == [f"'sha256-{own}'"]
    assert not re.search(r"https?://|@import|url\((?!#)", html)


def test_identifiers_are_unique_and_links_lead_somewhere(html):
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    targets = {a["href"][1:] for t, a in page.elements if t in ("a", "use") and a.get("href", "").startswith("#")}
    assert targets
    assert targets <= set(page.ids)
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(headings))


def test_figures_are_labelled_and_take_their_colours_from_the_theme(html):
    page = Page(html)
    labels = [a["aria-label"] for t, a in page.elements if a.get("role") == "img"]
    assert len(labels) == sum(t == "figure" for t, _ in page.elements) == 9
    assert all(labels)
    for drawing in re.findall(r"<svg aria-hidden.*?</svg>", html, flags=re.DOTALL):
        colours = set(re.findall(r"#[0-9a-f]{6}", drawing)) - {"#000000"}
        assert not colours


def test_html_has_the_cells_of_the_content(content, html):
    tables = Page(html).tables
    for table in (content.effects, content.variants, content.speed, content.speed_ratios, content.routing,
                  content.sizes, content.runs, content.noise, content.curve_table):  # fmt: skip
        head = [c.label for c in table.columns]
        assert [head, *map(list, table.rows)] in tables


def test_markdown_has_the_cells_of_the_content(content):
    text = to_markdown(content)
    for table in (content.effects, content.variants, content.speed, content.speed_ratios):
        for row in table.rows:
            assert "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" in text
    assert content.answer[0] in text
    assert all(limit.replace("_", "\\_") in text for limit in content.limits)
    assert "<" not in apart(text)[0]


def test_written_files_are_whole_and_the_same_each_time(tmp_path):
    folder = fake.write_study(tmp_path / "a", fake.plan(), fake.records())
    content = build(folder)
    paths = write(content)
    assert [path.name for path in paths] == ["report.html", "report.md"]
    first = [path.read_bytes() for path in paths]
    assert not list(folder.glob(".*"))
    other = fake.write_study(tmp_path / "b", fake.plan(), fake.records()[::-1])
    program = (
        "import sys, json, pathlib; from ablate.report import build, to_json, write; "
        "content = build(pathlib.Path(sys.argv[1])); write(content); print(json.dumps(to_json(content))); "
        "assert 'torch' not in sys.modules"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "MPLCONFIGDIR": str(tmp_path / "mpl")}
    (tmp_path / "mpl").mkdir()
    (tmp_path / "mpl" / "matplotlibrc").write_text("font.size: 33\naxes.xmargin: 0.4\n")
    command = [sys.executable, "-c", program, str(other)]
    done = subprocess.run(command, check=True, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert json.loads(done.stdout) == json.loads(json.dumps(to_json(content)))
    assert [(other / path.name).read_bytes() for path in paths] == first


def test_a_study_without_a_comparison_has_no_empty_table(tmp_path):
    plan = fake.plan([fake.variant("full", fake.FULL, range(5))])
    content = build(fake.write_study(tmp_path / "s", plan, fake.records()[:5]))
    assert all(len(table) > 1 for table in Page(to_html(content)).tables)
    assert content.noise.title not in to_markdown(content)


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    """A study of nine variants."""
    variants, records = [], []
    for i in range(9):
        levels = fake.FULL if i == 0 else fake.FULL | {"mtp": f"other-{i}"}
        variants.append(fake.variant(f"v{i}" * 20, levels, range(3)))
        records += [fake.record(f"v{i}" * 20, s, 3.2 + 0.01 * i + 0.002 * ((s * i) % 3), levels) for s in range(3)]
    folder = tmp_path_factory.mktemp("nine") / "s"
    return build(fake.write_study(folder, fake.plan(variants, seeds=[0, 1, 2]), records))


def test_no_figure_leaves_a_variant_out_or_uses_a_colour_twice(nine):
    figures = all_figures(nine)
    comparisons = [f"other-{i} → mtp" for i in range(1, 9)]
    for name in ("tokens", "flops", "gaps"):
        assert [panel.title for panel in figures[name]] == comparisons
    for panel in figures["tokens"]:
        # Two lines in colour with their bands, and the other seven pale.
        assert panel.svg.count("stroke: var(--muted); stroke-opacity: 0.25") == 7
        assert "var(--series-0)" in panel.svg
        assert "var(--series-1)" in panel.svg
    (forest,) = figures["effects"]
    assert all(forest.svg.count(name) == 1 for name in comparisons)
    assert len(re.findall(r"−0\.\d+ to|\+0\.\d+ to", forest.svg)) == 8
    text = to_html(nine)
    assert all(f"v{i}" * 20 in text for i in range(9))


def test_the_forest_is_sorted_and_cuts_an_interval_that_would_hide_the_others():
    near = [
        Row(name=n, verdict="gain", estimate=x, low=x - 0.01, high=x + 0.01) for n, x in (("b", -0.02), ("a", 0.03))
    ]
    far = Row(name="c", verdict="not resolved", estimate=0.01, low=-5.0, high=5.0)
    figure = Figure()
    axes = figure.subplots()
    forest(axes, [*near, far], 0.005, "nats per token")
    assert max(map(abs, axes.get_xlim())) < 0.2
    arrows = [line for line in axes.lines if line.get_marker() in ("<", ">")]
    assert [line.get_ydata()[0] for line in arrows] == [0, 0]


def test_the_forest_has_the_largest_gain_first(nine):
    found = rows(nine.result)
    assert [row.estimate for row in found] == sorted(row.estimate for row in found)
    assert len(found) == 8


def test_what_has_not_decayed_is_faded(content):
    (line, _) = content.curves
    assert line.n_undecayed == 16  # of 20 points, the last fifth decays
    (panel,) = all_figures(content)["tokens"]
    assert "stroke-opacity: 0.4" in panel.svg
