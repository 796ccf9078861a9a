"""This machine: what is timed on it, what it can do."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from ablate.commands.options import Json, Out, print_json, say

app = typer.Typer()


@app.command(epilog="Example: dsv3-ablate bench step --preset nano")
def bench(
    group: Annotated[
        Literal["kernels", "attention", "moe", "fp8", "loss", "norm", "step"],
        typer.Argument(metavar="GROUP", help="kernels (all of them), attention, moe, fp8, loss, norm, or step."),
    ] = "kernels",
    preset: Annotated[str, typer.Option(help="Sizes of `step`; default: cpu, or h200-d1024 on a GPU.")] = "",
    tune: Annotated[bool, typer.Option("--tune", help="Find the kernels' configurations for this GPU.")] = False,
    limit: Annotated[float | None, typer.Option(metavar="SECONDS", help="Begin nothing after this.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep what --out has, and measure the rest.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", hidden=True)] = False,  # every path, figures without meaning
    out: Out = None,
    json: Json = False,
) -> None:
    """Time every operation on every backend of this machine, once its numbers are right.

    Exit code 1 where a kernel of this program is wrong or fails, a training step fails, or the device is lost; what was
    measured is written and printed all the same.
    """
    from ablate.bench.command import run_bench
    from ablate.bench.render import render

    if resume and out is None:
        raise ValueError("--resume goes on with what --out has: give the folder of the earlier benchmark with --out")
    document = run_bench(group, preset=preset, tune=tune, smoke=smoke, out=out, limit_s=limit, resume=resume, say=say)
    if json:
        print_json(document)
    else:
        typer.echo(render(document))
    for fault in document["faults"]:
        say(f"fault: {fault}")
    if document["faults"]:
        raise typer.Exit(1)


@app.command(epilog="Example: dsv3-ablate doctor --json")
def doctor(json: Json = False) -> None:
    """What this machine can do."""
    from ablate.doctor import examine, render

    facts = examine()
    if json:
        print_json(facts)
    else:
        typer.echo(render(facts))
