"""What a model is and costs, without training: cards, accounts; and weights for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ablate.commands.options import (
    Alternatives,
    Disable,
    Enable,
    Json,
    Recompute,
    ZeroStage,
    default_preset,
    pairs,
    print_json,
    say,
)

app = typer.Typer()


@app.command(epilog="Example: dsv3-ablate components mtp")
def components(name: Annotated[str | None, typer.Argument(metavar="[C]", help="Only this one.")] = None) -> None:
    """List the components, or explain one."""
    from ablate.components.listing import card, overview

    typer.echo(card(name) if name else overview())


@app.command(epilog="Example: dsv3-ablate account --preset v3-671b --disable mla")
def account(
    preset: Annotated[str, typer.Option(help="Sizes: a name, or a TOML file.")] = "",
    model: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="A model of your own.")] = None,
    disable: Disable = None,
    enable: Enable = None,
    alternative: Alternatives = None,
    sequence_length: Annotated[int | None, typer.Option(help="Default: the preset's.")] = None,
    ranks: Annotated[str, typer.Option(metavar="AXIS=N,...", help="As of run: expert=64,node=8.")] = "",
    recompute: Recompute = None,
    zero_stage: ZeroStage = None,
    json: Json = False,
) -> None:
    """Parameters, FLOPs, cache and memory of a model, in closed form."""
    from ablate.presets.account import account_model, account_preset, render
    from ablate.spec.ranks import read_ranks

    changes = {"recompute": recompute, "zero_stage": zero_stage}
    if model is not None:
        if preset or disable or enable or alternative or ranks or any(v is not None for v in changes.values()):
            raise ValueError(
                "--model describes a whole model; give it without --preset, --disable, --enable, --alternative, "
                "--ranks, --recompute, --zero-stage"
            )
        figures = account_model(model, sequence_length)
    else:
        figures = account_preset(
            preset or default_preset(),
            disable or [],
            enable or [],
            pairs(alternative or []),
            sequence_length,
            read_ranks(ranks) if ranks else None,
            **{name: value for name, value in changes.items() if value is not None},
        )
    if json:
        print_json(figures)
    else:
        typer.echo(render(figures))


@app.command(epilog="Example: dsv3-ablate export results/FOLDER/runs/ID --out weights")
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run: results/STUDY/runs/ID.")],
    format: Annotated[
        Literal["hf", "trace"],
        typer.Option(help="hf: a folder for transformers; trace: what its ranks did, a file for Perfetto."),
    ] = "hf",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PATH", help="Folder of the weights, or file of the trace.")
    ] = None,
) -> None:
    """Write a run's weights, or what its ranks did, for other programs."""
    from ablate.sweep.export import export_run, export_trace

    if format == "trace":
        typer.echo(export_trace(run, out))
        return
    folder, notes = export_run(run, out)
    for note in notes:
        say(f"note: {note}")
    typer.echo(folder)
