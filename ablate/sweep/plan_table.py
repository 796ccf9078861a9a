"""The plan of a study for people, before anything is spent: what runs, what is equal for all, how long it takes."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ablate.quantities import NONE, budget, duration, percent, plural, scaled, short, whole
from ablate.runs.factors import PRESET
from ablate.runs.plan import Plan, PlannedVariant
from ablate.sweep.estimate import Estimate

HEADINGS = ("variant", "runs", "steps", "tokens", "FLOPs", "parameters", "activated", "lr", "time a run")
DROPPED = ("parameters", "activated", "lr", "tokens", "FLOPs", "runs")  # in this order, where a terminal is too narrow
MIN_NAME = 12  # characters that a variant's name keeps


def render(plan: Plan, n_parallel: int, folder: Path, time: Estimate, width: int) -> Group:
    """The plan, for a terminal of this width: a narrow one has fewer columns, and no broken words."""
    n_seeds = len(plan.seeds)
    seeds = plural(n_seeds, "seed") + (", which give no interval" if n_seeds == 1 else "")
    sizes = any(factor.name == PRESET for factor in plan.factors)
    amount = f"{plan.match} at each size" if sizes else f"{budget(plan.budget, plan.match)} a run"
    said = [
        f"Equal for all: {amount}, {seeds}, data order and initial values by seed, "
        f"{whole(plan.tokens_per_step)} tokens a step."
    ]
    if n_seeds == 1:
        said.append("With 1 seed nothing tells an effect from noise: no interval will follow. Give --seeds 2 or more.")
    reference = plan.variants[0]
    if reference.n_branch_steps:
        more = percent(reference.n_branch_steps / reference.n_steps, 2)
        said.append(f"Each run is decayed to finished models before its end too, in branches of {more} more steps.")
    left = "" if time.n_left == plan.n_runs else f", {time.n_left} of them left"
    said.append(f"{plural(plan.n_runs, 'run')}{left}, {n_parallel} at a time: {time}. Results: {folder}")
    return Group(Text(plan.question, style="bold"), _table(plan, time, width), *map(Text, said))


def _table(plan: Plan, time: Estimate, width: int) -> Table:
    rows = [dict(zip(HEADINGS, _row(v, time), strict=True)) for v in plan.variants]
    shown = list(HEADINGS)
    for heading in DROPPED:
        if _width(shown, rows) > width:
            shown.remove(heading)
    table = Table(box=None, pad_edge=False)
    for heading in shown:
        if heading == "variant":
            table.add_column(heading, overflow="fold", min_width=MIN_NAME)
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(row[heading]) for heading in shown))
    return table


def _width(shown: list[str], rows: list[dict[str, str]]) -> int:
    """Characters that the columns take, two between each."""
    widths = [max(len(heading), *(len(row[heading]) for row in rows)) for heading in shown[1:]]
    names = max(len(row["variant"]) for row in rows)
    return max(MIN_NAME, min(names, 2 * MIN_NAME)) + sum(widths) + 2 * len(widths)


def _row(v: PlannedVariant, time: Estimate) -> list[str]:
    found = time.runs.get(v.name)
    return [
        v.name,
        str(len(v.run_ids)),
        whole(v.n_steps),
        scaled(v.n_tokens),
        scaled(v.flops, "FLOP"),
        scaled(v.cost["trained_parameters"]),
        scaled(v.cost["activated_parameters"]),
        short(v.learning_rate),
        NONE if found is None else _range(found.low, found.high),
    ]


def _range(low: float, high: float) -> str:
    """Ends of a duration, in the unit of the higher one."""
    if high < 60:
        return f"{max(round(low), 1)} to {max(round(high), 1)} s"
    return f"{duration(low)} to {duration(high)}"


def show(console: Console, plan: Plan, n_parallel: int, folder: Path, time: Estimate) -> None:
    console.print(render(plan, n_parallel, folder, time, console.width))
