"""The figures of a report as inline SVG: the same bytes for the same content, legible in light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ablate.attribution.study.compare import LOSS, SPEED, Comparison, StudyResult
from ablate.attribution.verdicts import GAIN, HARM, NO_EFFECT
from ablate.report.content import ReportContent
from ablate.report.curves import Curve, Gap
from ablate.report.format import clean, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stand-ins that matplotlib draws with and the style sheet's variables replace, so that one drawing has two themes.
INK, MUTED, GRID, PAPER = "#0a0b0c", "#6d6e6f", "#d7d8d9", "#fefdfc"
GOOD, BAD, SAME, OPEN = "#0b7a5a", "#b2450b", "#3d5a9c", "#7a7b7c"
SERIES = ("#0c69a8", "#c8500c", "#0a8f6e", "#b5629a", "#8a6d00", "#3f9fd0")
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", PAPER: "paper", GOOD: "good", BAD: "bad", SAME: "same",
             OPEN: "open"} | {color: f"series-{i}" for i, color in enumerate(SERIES)}  # fmt: skip
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 1)), (0, (8, 2)))
MARKERS = ("o", "s", "D", "^", "v", "P")
VERDICT_COLORS = {GAIN: GOOD, HARM: BAD, NO_EFFECT: SAME}
MAX_LINES = len(SERIES)
LABEL = 26  # characters of a name inside a figure; the tables have it whole
WIDTH = 5.2  # inches; 1 inch is 72 units of the SVG


def all_figures(content: ReportContent) -> dict[str, str]:
    """Name -> SVG of every figure; empty where the content has no data for it."""
    drawn = dict.fromkeys(("effects", "tokens", "flops", "gaps", "cost"), "")
    result = content.result
    if any(c.loss.estimate is not None for c in result.comparisons):
        drawn["effects"] = _effects(result.comparisons)
    lines = [line for line in content.curves if line.points][:MAX_LINES]
    if lines:
        drawn["tokens"] = _loss(lines, "tokens")
        drawn["flops"] = _loss(lines, "flops")
    if content.gaps:
        drawn["gaps"] = _gaps(content.gaps, [v.name for v in result.variants], result.plan.margin_nats)
    if len(result.variants) > 1:
        drawn["cost"] = _cost(result)
    return drawn


def _effects(comparisons: Sequence[Comparison]) -> str:
    """Forest of effects: interval, estimate, each seed's difference, and the margin as a band."""
    shown = [c for c in comparisons if c.loss.estimate is not None]
    with _canvas("effects", height=1.05 + 0.5 * len(shown)) as (figure, out):
        axes = figure.subplots()
        margin = shown[0].loss.margin
        if margin:
            axes.axvspan(-margin, margin, color=GRID, alpha=0.55, lw=0, zorder=0)
        axes.axvline(0, color=INK, lw=0.9, zorder=1)
        for y, c in enumerate(reversed(shown)):
            color = VERDICT_COLORS.get(c.loss.verdict, OPEN)
            if c.pairing_ok:
                seeds = [c.differences[s] for s in sorted(c.differences)]
                axes.plot(seeds, [y - 0.24] * len(seeds), ls="", marker="o", ms=3.4, mfc="none", mec=color, mew=0.8)
            if c.loss.low is not None and c.loss.high is not None:
                ends: list[float] = [c.loss.low, c.loss.high]
                axes.plot(ends, [y, y], color=color, lw=2.2, solid_capstyle="butt")
            centre = c.loss.estimate or 0.0
            axes.plot([centre], [y], ls="", marker="D", ms=6.5, mfc=color, mec=PAPER, mew=0.8)
        axes.set_yticks(range(len(shown)), [shortened(clean(c.name), LABEL) for c in reversed(shown)], color=INK)
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.tick_params(axis="y", length=0, labelsize=9)
        axes.set_xlabel("loss with − loss without, nats per token")
        axes.set_title("← gain", loc="left", fontsize=8.5, color=GOOD)
        axes.set_title("harm →", loc="right", fontsize=8.5, color=BAD)
        axes.grid(axis="y", visible=False)
        _symmetric(axes)
    return out[0]


def _symmetric(axes: Axes) -> None:
    """Zero stays in view, with air at both ends."""
    low, high = axes.get_xlim()
    span = max(high - low, 1e-9)
    axes.set_xlim(min(low, -0.08 * span), max(high, 0.08 * span))


def _loss(lines: Sequence[Curve], against: str) -> str:
    """Held-out loss, mean and range over seeds; the decayed end point is marked."""
    import pandas
    import seaborn

    labels = {"tokens": "training tokens", "flops": "training FLOPs"}
    with _canvas(against, height=3.3) as (figure, out):
        axes = figure.subplots()
        rows = [
            {"x": p.n_tokens if against == "tokens" else p.flops, "loss": p.mean, "variant": str(i)}
            for i, line in enumerate(lines)
            for p in line.points
        ]
        seaborn.lineplot(
            pandas.DataFrame(rows), x="x", y="loss", hue="variant", palette=list(SERIES[: len(lines)]), ax=axes,
            errorbar=None, legend=False, lw=1.6,
        )  # fmt: skip
        for i, line in enumerate(lines):
            x = [p.n_tokens if against == "tokens" else p.flops for p in line.points]
            axes.lines[i].set_linestyle(DASHES[i])
            axes.fill_between(x, [p.low for p in line.points], [p.high for p in line.points], color=SERIES[i],
                              alpha=0.22, lw=0)  # fmt: skip
            end = line.points[-1]
            axes.plot([x[-1]], [end.mean], ls="", marker=MARKERS[i], ms=6, mfc=SERIES[i], mec=PAPER, mew=0.8, zorder=5)
        axes.set_xlabel(labels[against])
        axes.set_ylabel("held-out loss, nats per token")
        axes.xaxis.set_major_formatter(_prefixed())
        axes.set_xlim(left=0)
    return out[0]


def _gaps(gaps: Sequence[Gap], variants: Sequence[str], margin: float) -> str:
    """Paired difference over the schedule with its interval."""
    with _canvas("gaps", height=2.7) as (figure, out):
        axes = figure.subplots()
        if margin:
            axes.axhspan(-margin, margin, color=GRID, alpha=0.55, lw=0, zorder=0)
        axes.axhline(0, color=INK, lw=0.9)
        for gap in gaps:
            # A comparison has the colour, dashes and marker that its variant has in the other figures.
            i = variants.index(gap.variant) % MAX_LINES
            x = [100 * p.share for p in gap.points]
            low, high = [p.low for p in gap.points], [p.high for p in gap.points]
            axes.fill_between(x, low, high, color=SERIES[i], alpha=0.2, lw=0)
            axes.plot(x, [p.mean for p in gap.points], color=SERIES[i], ls=DASHES[i], lw=1.6)
            axes.plot([x[-1]], [gap.points[-1].mean], ls="", marker=MARKERS[i], ms=6, mfc=SERIES[i], mec=PAPER, mew=0.8)
        axes.set_xlabel("share of the run, %")
        axes.set_ylabel("with − without, nats")
        axes.set_xlim(0, 102)
    return out[0]


def _cost(result: StudyResult) -> str:
    """Speed, arithmetic and memory of each variant as multiples of the reference; emulated figures are hollow."""
    shown = [v.name for v in result.variants][:MAX_LINES]
    rows = [(name, values) for name, values in _relative(result) if any(x != 1 for x, _ in values.values())]
    if not rows:
        return ""
    with _canvas("cost", height=0.8 + (0.22 + 0.12 * len(shown)) * len(rows)) as (figure, out):
        axes = figure.subplots()
        axes.axvline(1, color=INK, lw=0.9)
        for y, (_, values) in enumerate(reversed(rows)):
            for i, variant in enumerate(shown):
                if variant in values:
                    value, hollow = values[variant]
                    offset = 0.62 * (i / (len(shown) - 1) - 0.5)
                    axes.plot([value], [y - offset], ls="", marker=MARKERS[i], ms=6.5,
                              mfc="none" if hollow else SERIES[i], mec=SERIES[i] if hollow else PAPER,
                              mew=1.4 if hollow else 0.8)  # fmt: skip
        for y in range(1, len(rows)):
            axes.axhline(y - 0.5, color=GRID, lw=0.7)
        axes.set_yticks(range(len(rows)), [name for name, _ in reversed(rows)], color=INK)
        axes.set_ylim(-0.5, len(rows) - 0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("multiple of the reference")
        low, high = axes.get_xlim()
        axes.set_xlim(max(0, min(low, 0.9)), max(high, 1.1))
    return out[0]


def _relative(result: StudyResult) -> Iterator[tuple[str, dict[str, tuple[float, bool]]]]:
    """(quantity, variant -> (multiple of the reference, emulated)); kinds of evidence are never set against another."""
    reference = result.variants[0]
    measured = {"tokens/s": (SPEED, "speed"), "peak memory": ("peak_memory_bytes", "memory")}
    for label, (metric, group) in measured.items():
        if metric in reference.metrics:
            kind, base = reference.evidence.get(group, ()), reference.metrics[metric].median
            yield (
                label,
                {
                    v.name: (v.metrics[metric].median / base, "emulated" in kind)
                    for v in result.variants
                    if metric in v.metrics and v.evidence.get(group, ()) == kind and base
                },
            )
    costs = {"FLOP/token": "training_flops_per_token", "KV bytes/token": "kv_cache_bytes_per_token",
             "parameters": "total_parameters", "activated": "activated_parameters"}  # fmt: skip
    for label, key in costs.items():
        if reference.cost.get(key):
            yield label, {v.name: (v.cost[key] / reference.cost[key], False) for v in result.variants if key in v.cost}


@contextmanager
def _canvas(name: str, *, height: float) -> Iterator[tuple[Figure, list[str]]]:
    """A figure in the report's style; when the block ends, `out[0]` is its SVG."""
    import matplotlib as mpl
    import seaborn
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    out: list[str] = []
    with mpl.rc_context():
        # From matplotlib's own defaults: a user's matplotlibrc must not change a report.
        mpl.rcdefaults()
        seaborn.set_theme(style="white", rc=_style(name))
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, out
        for axes in figure.axes:
            seaborn.despine(ax=axes, left=True)
        file = io.StringIO()
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
        out.append(_inline(file.getvalue(), name))


def _style(name: str) -> Mapping[str, Any]:
    return {
        "svg.hashsalt": name, "svg.fonttype": "none", "text.parse_math": False, "font.family": "DejaVu Sans",
        "font.size": 9, "axes.labelsize": 9, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "text.color": INK,
        "axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED, "axes.edgecolor": MUTED,
        "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.7, "axes.linewidth": 0.8, "axes.axisbelow": True,
        "axes.unicode_minus": True, "xtick.bottom": True, "xtick.major.size": 3, "lines.dash_capstyle": "butt",
    }  # fmt: skip


def _prefixed() -> Any:
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep=" ")


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
    assert LOSS not in svg
    return svg.replace("<svg ", f'<svg aria-hidden="true" style="aspect-ratio: {width} / {height}" ', 1).strip()
