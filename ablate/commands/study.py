"""Studies: run a comparison, run a study file, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ablate.commands.options import (
    INTERRUPTED,
    Alternatives,
    At,
    Disable,
    DryRun,
    Enable,
    Jobs,
    Json,
    Match,
    MaxSeeds,
    Out,
    PrecisionOption,
    Seeds,
    TextField,
    Until,
    Wandb,
    default_preset,
    number,
    pairs,
    print_json,
)

app = typer.Typer()


@app.command(epilog="Example: dsv3-ablate run --disable mtp --preset nano")
def run(
    disable: Disable = None,
    enable: Enable = None,
    alternative: Alternatives = None,
    preset: Annotated[
        str, typer.Option(help="Sizes: a name, or a TOML file. Default: cpu, or h200-d512 on a GPU.")
    ] = "",
    seeds: Seeds = None,
    precision: PrecisionOption = None,
    until: Until = None,
    max_seeds: MaxSeeds = None,
    match: Annotated[Match, typer.Option(help="What all variants have equal.")] = "flops",
    budget: Annotated[
        str,
        typer.Option(
            metavar="X", help="Of one run, in the unit of --match: 2e12, 300k, 60. Default: the preset's tokens."
        ),
    ] = "",
    margin: Annotated[float, typer.Option(help="Differences up to this are of no interest, in nats.")] = 0.005,
    data: Annotated[
        str, typer.Option(help='Corpus: "stdlib", a file or folder, or hf:NAME. Default: the preset\'s.')
    ] = "",
    text_field: TextField = "",
    learning_rate: Annotated[float | None, typer.Option(help="Of all variants; default: the preset's.")] = None,
    without: Annotated[list[str] | None, typer.Option(metavar="C", help="Off in all variants.")] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SLOT=NAME",
            help="What runs a slot (attention, feed_forward, balance, linear, norm, head): library, triton, ...",
        ),
    ] = None,
    out: Out = None,
    jobs: Jobs = None,
    wandb: Wandb = "",
    at: At = "v3-671b",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Compare the full recipe with the full recipe without a component, and report."""
    from ablate.runs.study import Study, question, unavailable

    alternatives, preset = pairs(alternative or []), preset or default_preset()
    left_out = tuple(dict.fromkeys((*(without or ()), *unavailable(data, preset))))
    study = Study(
        question=question(disable or [], enable or [], alternatives, left_out),
        preset=preset,
        disable=tuple(disable or ()),
        enable=tuple(enable or ()),
        without=left_out,
        alternatives=alternatives,
        match=match,
        budget=number(budget, "--budget") if budget else None,
        n_seeds=seeds,
        precision=precision or "",
        until=until or "",
        max_seeds=max_seeds,
        margin_nats=margin,
        data=data,
        text_field=text_field,
        trainer={} if learning_rate is None else {"learning_rate": learning_rate},
        backends=pairs(backend or [], "--backend", "SLOT=NAME, for example attention=triton"),
    )
    _run_study(study, out=out, n_parallel=jobs, dry_run=dry_run, wandb_project=wandb, json=json, at=at)


@app.command(epilog="Example: dsv3-ablate sweep sweeps/leave-one-out.toml --until resolved")
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="A study file.")],
    seeds: Seeds = None,
    precision: PrecisionOption = None,
    until: Until = None,
    max_seeds: MaxSeeds = None,
    out: Out = None,
    jobs: Jobs = None,
    wandb: Wandb = "",
    at: At = "v3-671b",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Run what a study file asks for, as far as it has not been run, and report."""
    from ablate.runs.study import read_study, with_seeds

    study = with_seeds(read_study(file), seeds, precision or "", until or "", max_seeds)
    _run_study(study, out=out, n_parallel=jobs, dry_run=dry_run, wandb_project=wandb, json=json, at=at)


def _run_study(study: Any, *, json: bool, at: str, **options: Any) -> None:
    from ablate.sweep.console import ConsoleDisplay
    from ablate.sweep.rounds import run_to_end
    from ablate.sweep.run import Options

    display = ConsoleDisplay()
    done = run_to_end(study, Options(**options), display)
    if done.outcome is None:
        if json:
            from ablate.spec.decoding import encode

            print_json(encode(done.plan))
        return
    if done.outcome.interrupted:
        display.say(f"stopped; records and checkpoints are in {done.folder}, and the same command goes on from there")
        raise typer.Exit(INTERRUPTED)
    _report(done.folder, ("html", "md"), json=json, at=at)
    if "failed" in done.outcome.status.values():
        raise typer.Exit(1)


@app.command(epilog="Example: dsv3-ablate report results/FOLDER --format md")
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a study.")],
    format: Annotated[
        Literal["html", "md", "json"] | None, typer.Option(help="Only this one. Default: html and md.")
    ] = None,
    at: At = "v3-671b",
) -> None:
    """Write the report of a study from its records: HTML and Markdown, or JSON on stdout."""
    _report(folder, ("html", "md") if format is None else (format,), json=format == "json", at=at)


def _report(folder: Path, formats: tuple[str, ...], *, json: bool, at: str) -> None:
    from rich.console import Console

    import ablate.report as reports
    from ablate.report import text

    content = reports.build(folder, at)
    paths = reports.write(content, tuple(form for form in formats if form != "json"))
    Console(stderr=True, highlight=False).print(text.render(content, paths))
    if json:
        print_json(reports.to_json(content))
