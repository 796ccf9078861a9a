"""Studies: run a comparison, run a study file, report."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ablate.commands.options import (
    INTERRUPTED,
    Alternatives,
    At,
    Checkpoints,
    Disable,
    DryRun,
    Enable,
    Jobs,
    Json,
    Match,
    MaxSeeds,
    Out,
    PrecisionOption,
    Recompute,
    Seeds,
    TextField,
    Timeline,
    Until,
    Wandb,
    ZeroStage,
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
    margin: Annotated[float, typer.Option(help="Differences up to this count as negligible, in nats.")] = 0.005,
    data: Annotated[
        str, typer.Option(help='Corpus: "stdlib", a file or folder, or hf:NAME. Default: the preset\'s.')
    ] = "",
    text_field: TextField = "",
    learning_rate: Annotated[float | None, typer.Option(help="Of all variants; default: the preset's.")] = None,
    ranks: Annotated[
        str,
        typer.Option(
            "--ranks", metavar="AXIS=N,...", help="Processes of a run, as in pipeline=2; each has whole sequences."
        ),
    ] = "",
    recompute: Recompute = None,
    zero_stage: ZeroStage = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences of a step; default: the preset's.")] = None,
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
    checkpoints: Checkpoints = None,
    timeline: Timeline = 0,
    at: At = "v3-671b",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Compare the full recipe with the full recipe without a component, and report."""
    from dataclasses import asdict

    from ablate.runs.study import Study, question, unavailable
    from ablate.spec.ranks import read_ranks

    alternatives, preset = pairs(alternative or []), preset or default_preset()
    changes = {
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "ranks": asdict(read_ranks(ranks)) if ranks else None,
        "recompute": recompute,
        "zero_stage": zero_stage,
    }
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
        trainer={name: value for name, value in changes.items() if value is not None},
        backends=pairs(backend or [], "--backend", "SLOT=NAME, for example attention=triton"),
    )
    options = {"dry_run": dry_run, "wandb_project": wandb, "checkpoints": checkpoints, "timeline": timeline}
    run_and_report(study, out=out, n_parallel=jobs, json=json, at=at, **options)


def _show_price(study: Any, done: Any, display: Any, *, per_hour: float | None, noise: Path | None) -> dict[str, Any]:
    """Print what the plan will take, and give it for the JSON document."""
    from ablate.runs.store import Store
    from ablate.spec.decoding import encode
    from ablate.sweep.estimate import ended
    from ablate.sweep.price import lines, noise_of, price, published_noise

    known = noise_of(noise) if noise else published_noise(done.plan, study.load_preset())
    earlier = ended(Store(done.folder))
    found = price(done.plan, n_parallel=done.n_parallel, per_hour=per_hour, noise=known, done=earlier)
    for line in lines(found, per_hour):
        display.say(line)
    return encode(found)


def run_and_report(study: Any, *, json: bool, at: str, pricing: Any = None, **options: Any) -> None:
    from ablate.sweep.conduct import conduct
    from ablate.sweep.console import ConsoleDisplay
    from ablate.sweep.run import Options

    display = ConsoleDisplay()
    done = conduct(study, Options(**options), display)
    if done.outcome is None:
        priced = _show_price(study, done, display, **(pricing or {"per_hour": None, "noise": None}))
        if json:
            from ablate.spec.decoding import encode

            print_json(encode(done.plan) | {"price": priced})
        return
    if done.outcome.interrupted:
        display.say(f"stopped; records and checkpoints are in {done.folder}, and the same command goes on from there")
        raise typer.Exit(INTERRUPTED)
    reports = _report(done.folder, ("html", "md"), json=json, at=at)
    if project := options.get("wandb_project"):
        from ablate.runs.wandb_sink import log_report

        log_report(project, done.folder, reports)
    if "failed" in done.outcome.status.values():
        raise typer.Exit(1)


@app.command(epilog="Example: dsv3-ablate report results/FOLDER --format md")
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR [DIR]", help="Folder of a study; two are compared.")],
    format: Annotated[
        Literal["html", "md", "json"] | None, typer.Option(help="Only this one. Default: html and md.")
    ] = None,
    at: At = "v3-671b",
    show: Annotated[bool, typer.Option("--open", help="Open the HTML report in the browser.")] = False,
    index: Annotated[
        bool, typer.Option("--index", help="DIR is a folder of studies: write index.html and index.md into it.")
    ] = False,
) -> None:
    """Write the report of a study from its records: HTML and Markdown, or JSON on stdout; or compare two studies."""
    if len(folders) > (1 if index else 2):
        raise ValueError(
            f"{len(folders)} folders were given; report takes one study, two to compare, or one folder with --index"
        )
    if show and (index or len(folders) == 2 or format not in (None, "html")):
        raise ValueError("--open shows the HTML report of one study; give one folder and no other --format than html")
    if index:
        _index(folders[0])
    elif len(folders) == 2:
        _compare(folders[0], folders[1], json=format == "json", at=at)
    else:
        _report(folders[0], ("html", "md") if format is None else (format,), json=format == "json", at=at)
        if show:
            import webbrowser

            webbrowser.open((folders[0] / "report.html").resolve().as_uri())


def _index(folder: Path) -> None:
    from ablate.report.index import write

    for path in write(folder):
        typer.echo(f"Index: {path}", err=True)


def _compare(first: Path, second: Path, *, json: bool, at: str) -> None:
    from rich.console import Console

    import ablate.report as reports
    from ablate.report import text, two

    contents = reports.build(first, at), reports.build(second, at)
    Console(stderr=True, highlight=False).print(text.of_two(*contents))
    if json:
        print_json(two.document(*contents))


def _report(folder: Path, formats: tuple[str, ...], *, json: bool, at: str) -> list[Path]:
    """Write and print the report of a study; the files that were written."""
    with _without_collector():
        return _written(folder, formats, json=json, at=at)


@contextmanager
def _without_collector() -> Iterator[None]:
    """No search for cycles: records live to the end, and going through them again and again is a fifth of a report."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _written(folder: Path, formats: tuple[str, ...], *, json: bool, at: str) -> list[Path]:
    from rich.console import Console

    import ablate.report as reports
    from ablate.report import text

    content = reports.build(folder, at)
    paths = reports.write(content, tuple(form for form in formats if form != "json"))
    Console(stderr=True, highlight=False).print(text.render(content, paths))
    if json:
        print_json(reports.to_json(content))
    return paths
