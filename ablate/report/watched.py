"""What is watched beside the loss while models train: loads of experts, accepted drafts, numbers lost to FP8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ablate.attribution.study.compare import StudyResult, VariantResult
from ablate.report.ends import reference, sides

MOST_MAPS = 6  # variants whose loads are drawn
MOST_ROWS, MOST_COLUMNS = 24, 32  # routers and experts of a map; of more, some that are spread evenly

BALANCE, DRAFTS = "max_violation", "draft_acceptance"
LOST = "fp8_{}_underflow_share"
KINDS = ("activation", "weight", "gradient")  # of numbers that FP8 rounds
# Metric of the curve -> the name of its panel, and what its numbers are multiplied by there.
PANELS: Mapping[str, tuple[str, float]] = {
    BALANCE: ("Largest load over mean − 1", 1.0),
    DRAFTS: ("Drafts accepted, %", 1e2),
} | {LOST.format(kind): (f"{kind.capitalize()}s that FP8 makes 0, per million", 1e6) for kind in KINDS}


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A figure of one variant over its training: the mean over finished runs, the least and the most of them."""

    variant: str
    n_tokens: tuple[float, ...]
    means: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """One figure; its first line is the reference's, or that of the first variant which has the figure.

    `against`: the variant without the component that the figure is about, where there is one; all others are `rest`.
    """

    metric: str
    first: Line
    against: Line | None
    rest: tuple[Line, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadMap:
    """Tokens of each expert over the mean of its router, at the end, mean over runs.

    Within a router and run the experts stand in order of their load, so that those of several runs can be averaged: in
    the first column is the busiest, and the mean of that column less 1 is the metric `max_violation`.
    """

    variant: str
    routers: tuple[str, ...]
    loads: tuple[tuple[float, ...], ...]  # a row a router
    n_runs: int

    @property
    def largest(self) -> float:
        """Load of the busiest expert over the mean, mean over routers."""
        return sum(row[0] for row in self.loads) / len(self.loads)


def watched(result: StudyResult) -> tuple[Watched, ...]:
    """A figure for each metric of PANELS that curves have."""
    return tuple(found for metric in PANELS if (found := _watched(metric, result)) is not None)


def _watched(metric: str, result: StudyResult) -> Watched | None:
    lines = [line for v in result.variants if (line := _line(v, metric)) is not None]
    if not lines:
        return None
    first = next((line for line in lines if line.variant == reference(result).name), lines[0])
    without = _without_balancing(result) if metric == BALANCE else ""
    against = next((line for line in lines if line.variant == without and line is not first), None)
    rest = tuple(line for line in lines if line is not first and line is not against)
    return Watched(metric=metric, first=first, against=against, rest=rest)


def _without_balancing(result: StudyResult) -> str:
    """The variant that differs from the reference in how its experts are balanced and in nothing else; "" for none."""
    for on, off in sides(result).values():
        levels = [next(v for v in result.variants if v.name == name).planned.levels for name in (on, off)]
        if {name for name in levels[0] if levels[0][name] != levels[1].get(name)} == {"aux-free"}:
            return off if on == reference(result).name else on
    return ""


def _line(variant: VariantResult, metric: str) -> Line | None:
    by_tokens: dict[float, list[float]] = {}
    for run in variant.finished:
        for point in run.record.curve if run.record else ():
            if metric in point and "n_tokens" in point:
                by_tokens.setdefault(point["n_tokens"], []).append(point[metric])
    values = [by_tokens[n] for n in sorted(by_tokens)]
    if not values:
        return None
    return Line(
        variant=variant.name,
        n_tokens=tuple(sorted(by_tokens)),
        means=tuple(sum(each) / len(each) for each in values),
        lows=tuple(map(min, values)),
        highs=tuple(map(max, values)),
    )


def load_maps(result: StudyResult) -> tuple[LoadMap, ...]:
    """Of the reference and of each variant that is compared with it, and of the first with loads where none of them
    has any."""
    by_name = {v.name: found for v in result.variants if (found := _load_map(v)) is not None}
    names = dict.fromkeys([reference(result).name, *(name for pair in sides(result).values() for name in pair)])
    shown = [by_name[name] for name in names if name in by_name] or list(by_name.values())[:1]
    return tuple(shown[:MOST_MAPS])


def _load_map(variant: VariantResult) -> LoadMap | None:
    runs = [run.record.expert_loads for run in variant.finished if run.record and run.record.expert_loads]
    if not runs:
        return None
    rows = {router: _mean_row([run[router] for run in runs]) for router in runs[0]}
    return LoadMap(variant=variant.name, routers=tuple(rows), loads=tuple(rows.values()), n_runs=len(runs))


def _mean_row(found: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """Loads of one router over their mean, the largest first, mean over runs; every run has as many experts."""
    ordered = [sorted((load * len(loads) / sum(loads) for load in loads), reverse=True) for loads in found]
    return tuple(sum(column) / len(column) for column in zip(*ordered, strict=True))


def spread(n: int, most: int) -> list[int]:
    """At most `most` of n places, the first and the last among them, spread evenly."""
    return list(range(n)) if n <= most else [round(i * (n - 1) / (most - 1)) for i in range(most)]


def router_names(routers: Sequence[str]) -> Mapping[str, str]:
    """Router -> what a figure calls it: the layer of the trunk, or the place in the objective."""
    named = {}
    for router in routers:
        numbers = [part for part in router.split(".") if part.isdecimal()]
        of_trunk = router.startswith("layers.")
        named[router] = f"{'layer' if of_trunk else 'MTP'} {int(numbers[0]) + 1}" if numbers else router
    return named
