"""What the figures of a report are drawn on: inline SVG with the same bytes for the same content, in two themes."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Stand-ins that matplotlib draws with and the style sheet's variables replace, so that one drawing has two themes.
INK, MUTED, GRID, PAPER = "#0a0b0c", "#6d6e6f", "#d7d8d9", "#fefdfc"
GOOD, BAD, SAME, OPEN = "#0b7a5a", "#b2450b", "#3d5a9c", "#7a7b7c"
WIDE, NARROW = 4.9, 3.5  # inches of a figure by itself and of one panel among several; 1 inch is 72 units of the SVG


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """How one side of a comparison looks in every panel, and in the legend: SVG's dash array, a path at the origin."""

    name: str
    color: str
    dashes: Any  # of matplotlib
    marker: str  # of matplotlib
    legend_dashes: str
    legend_marker: str


# The two sides of a comparison are the only colours: each comparison has a panel of its own, so none can run out.
WITH = Series(name="with the component", color="#0c69a8", dashes="-", marker="o",
              legend_dashes="none", legend_marker="M4 0A4 4 0 1 1 -4 0A4 4 0 1 1 4 0Z")  # fmt: skip
WITHOUT = Series(name="without it", color="#c8500c", dashes=(0, (5, 2)), marker="s",
                 legend_dashes="7 3", legend_marker="M-3.6 -3.6H3.6V3.6H-3.6Z")  # fmt: skip
SIDES = (WITH, WITHOUT)
DIGITS = re.compile(r"(\d\.\d{2})\d+")
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", PAPER: "paper", GOOD: "good", BAD: "bad", SAME: "same",
             OPEN: "open"} | {side.color: f"series-{i}" for i, side in enumerate(SIDES)}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One drawing and what stands above it; a figure that needs no heading of its own has none."""

    svg: str
    title: str = ""


def mark(axes: Axes, x: float, y: float, color: str, marker: str, *, hollow: bool = False, **options: Any) -> None:
    """One point, filled or hollow."""
    face, edge, width = ("none", color, 1.4) if hollow else (color, PAPER, 0.8)
    style: dict[str, Any] = {"ls": "", "marker": marker, "ms": 6, "mfc": face, "mec": edge, "mew": width} | options
    axes.plot([x], [y], **style)


def draw(name: str, size: tuple[float, float], paint: Callable[[Axes], None]) -> str:
    """A drawing of one pair of axes, width and height in inches, as SVG in the report's style."""
    import matplotlib as mpl
    import seaborn
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    file = io.StringIO()
    with mpl.rc_context():
        # From matplotlib's own defaults: a user's matplotlibrc must not change a report.
        mpl.rcdefaults()
        seaborn.set_theme(style="white", rc=_style(name))
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        paint(axes)
        for each in figure.axes:
            seaborn.despine(ax=each, left=True)
        # Laid out once and then drawn once: while an engine is set, saving draws everything twice.
        engine = figure.get_layout_engine()
        assert engine is not None
        engine.execute(figure)
        figure.set_layout_engine(None)  # "none" would leave a placeholder, for which saving draws twice as well
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    return _inline(file.getvalue(), name)


def _style(name: str) -> Mapping[str, Any]:
    return {
        "svg.hashsalt": name, "svg.fonttype": "none", "text.parse_math": False, "font.family": "DejaVu Sans",
        "font.size": 9, "axes.labelsize": 9, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "text.color": INK,
        "axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED, "axes.edgecolor": MUTED,
        "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.7, "axes.linewidth": 0.8, "axes.axisbelow": True,
        "axes.unicode_minus": True, "xtick.bottom": True, "xtick.major.size": 3, "lines.dash_capstyle": "butt",
    }  # fmt: skip


def _inline(svg: str, name: str) -> str:
    """SVG for use inside HTML: no prolog or metadata, colours from the style sheet, identifiers of this figure only."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Its style rule is for every element of a page; report.css has it for figures.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--sans)", svg)
    # Hundredths of a point are enough in attributes, and half of the size; what is written stays as it is.
    svg = re.sub(r'="[^"]*"', lambda found: DIGITS.sub(r"\1", found[0]), svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    width, height = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', svg).groups()  # type: ignore[union-attr]
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt" ', "", svg, count=1)
    return svg.replace("<svg ", f'<svg aria-hidden="true" style="aspect-ratio: {width} / {height}" ', 1).strip()
