"""Pipeline schedules: shown as the tables that are priced and executed."""

from __future__ import annotations

from typing import Annotated

import typer

from ablate.commands.options import Json, print_json

app = typer.Typer()


@app.command(epilog="Example: dsv3-ablate schedule dualpipe --ranks 4 --micro-batches 10")
def schedule(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="dualpipe, 1f1b, gpipe, interleaved, zb1p, zbv or dualpipev."),
    ],
    ranks: Annotated[int, typer.Option(metavar="P", help="Pipeline ranks.")] = 4,
    micro_batches: Annotated[int, typer.Option(metavar="M", help="Micro-batches of an optimizer step.")] = 10,
    chunks: Annotated[int, typer.Option(metavar="V", help="Stages a rank, of interleaved.")] = 2,
    transfers: Annotated[bool, typer.Option("--transfers", help="Show sends and receives too.")] = False,
    json: Json = False,
) -> None:
    """Who does what in which order under a pipeline schedule, checked."""
    from ablate.schedules.render import facts, render
    from ablate.schedules.tables import table

    made = table(name, ranks, micro_batches, n_chunks=chunks)
    if json:
        print_json(facts(made))
    else:
        typer.echo(render(made, transfers=transfers))
