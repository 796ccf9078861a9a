"""A table of results from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ablate.commands.options import Json, print_json

app = typer.Typer()


@app.command(epilog="Example: dsv3-ablate attribute results.csv --metric loss --lower-is-better")
def attribute(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE", help="A row per run: CSV, JSON, Parquet, Optuna's study.db, W&B's exports, or - for stdin."
        ),
    ],
    metric: Annotated[str | None, typer.Option(metavar="NAME", help="Column to attribute.")] = None,
    component: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Attribute to these only; a number is taken as a covariate."),
    ] = None,
    on: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="The value of a text column that is on.")
    ] = None,
    where: Annotated[list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Only these rows.")] = None,
    seed: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column of seeds, if its name hides it.")
    ] = None,
    last: Annotated[bool, typer.Option("--last", help="Of rows that are steps, the final one of each run.")] = False,
    study: Annotated[str | None, typer.Option(metavar="NAME", help="Of an Optuna storage with several.")] = None,
    lower_is_better: Annotated[
        bool | None, typer.Option("--lower-is-better/--higher-is-better", help="Direction of the metric.")
    ] = None,
    requires: Annotated[list[str] | None, typer.Option(metavar="A=B", help="A is only meaningful with B on.")] = None,
    block: Annotated[list[str] | None, typer.Option(metavar="A,B", help="Components that belong together.")] = None,
    margin: Annotated[float, typer.Option(help="Effects up to this count as negligible.")] = 0.0,
    confidence: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    log: Annotated[bool, typer.Option("--log", help="Attribute the logarithm: ratio metrics.")] = False,
    order: Annotated[
        int | None, typer.Option(help="Assume no interactions of more components than this; default: as needed.")
    ] = None,
    json: Json = False,
) -> None:
    """Attribute the results of a table, from wherever they come."""
    from ablate.attribution.table.attribute import attribute as attribute_table
    from ablate.attribution.table.text import render_text

    result = attribute_table(
        table,
        metric=metric,
        components=component or [],
        on=on or [],
        where=where or [],
        seed=seed,
        last=last,
        study=study,
        log=log,
        lower_is_better=lower_is_better,
        requires=requires or [],
        blocks=block or [],
        margin=margin,
        confidence=confidence,
        order=order,
    )
    if json:
        print_json(result.to_json())
    else:
        typer.echo(render_text(result))
