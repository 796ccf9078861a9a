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
WIDTH = 5.2  # inches; 1 inch is 72 units of the SVG


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """How a variant looks in every figure, and in the legend: SVG's dash array, and a path around the origin."""

    color: str
    dashes: Any  # of matplotlib
    marker: str  # of matplotlib
    legend_dashes: str
    legend_marker: str


SERIES = (
    Series(color="#0c69a8", dashes="-", marker="o",
           legend_dashes="none", legend_marker="M4 0A4 4 0 1 1 -4 0A4 4 0 1 1 4 0Z"),
    Series(color="#c8500c", dashes=(0, (5, 2)), marker="s",
           legend_dashes="7 3", legend_marker="M-3.6 -3.6H3.6V3.6H-3.6Z"),
    Series(color="#0a8f6e", dashes=(0, (1, 1.4)), marker="D",
           legend_dashes="2 2.5", legend_marker="M0 -5L5 0L0 5L-5 0Z"),
    Series(color="#b5629a", dashes=(0, (6, 1.5, 1.2, 1.5)), marker="^",
           legend_dashes="8 2.5 2 2.5", legend_marker="M0 -4.5L4.5 4H-4.5Z"),
    Series(color="#8a6d00", dashes=(0, (3, 1)), marker="v",
           legend_dashes="4 2", legend_marker="M0 4.5L4.5 -4H-4.5Z"),
    Series(color="#3f9fd0", dashes=(0, (8, 2)), marker="P",
           legend_dashes="11 3", legend_marker="M-1.4 -4.4H1.4V-1.4H4.4V1.4H1.4V4.4H-1.4V1.4H-4.4V-1.4H-1.4Z"),
)  # fmt: skip
MAX_LINES = len(SERIES)
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", PAPER: "paper", GOOD: "good", BAD: "bad", SAME: "same",
             OPEN: "open"} | {series.color: f"series-{i}" for i, series in enumerate(SERIES)}  # fmt: skip


def mark(axes: Axes, x: float, y: float, series: Series, *, hollow: bool = False, **options: Any) -> None:
    """The marker of a variant at one point."""
    face, edge, width = ("none", series.color, 1.4) if hollow else (series.color, PAPER, 0.8)
    style: dict[str, Any] = {
        "ls": "",
        "marker": series.marker,
        "ms": 6,
        "mfc": face,
        "mec": edge,
        "mew": width,
    } | options
    axes.plot([x], [y], **style)


def draw(name: str, height: float, paint: Callable[[Axes], None]) -> str:
    """A figure of one panel, `height` inches high, as SVG in the report's style."""
    import matplotlib as mpl
    import seaborn
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    file = io.StringIO()
    with mpl.rc_context():
        # From matplotlib's own defaults: a user's matplotlibrc must not change a report.
        mpl.rcdefaults()
        seaborn.set_theme(style="white", rc=_style(name))
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        paint(axes)
        seaborn.despine(ax=axes, left=True)
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
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    width, height = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', svg).groups()  # type: ignore[union-attr]
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt" ', "", svg, count=1)
    return svg.replace("<svg ", f'<svg aria-hidden="true" style="aspect-ratio: {width} / {height}" ', 1).strip()
