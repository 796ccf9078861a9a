"""The commands: parse, call one function, print. Results go to stdout with --json; what people read goes to stderr."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from ablate.errors import RunFailed

INTERRUPTED = 130  # exit code


class Commands(TyperGroup):
    """The group of all commands, for which Ctrl-C is no fault and still gets its sentence."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("interrupted; what was finished is kept, and the same command goes on from it", err=True)
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="What was each DeepSeek-V3 change worth? Matched-compute ablations with intervals.",
)
data_app = typer.Typer(no_args_is_help=True, help="Corpora: prepare one, or look at it.")
app.add_typer(data_app, name="data")

Disable = Annotated[list[str] | None, typer.Option("--disable", metavar="C", help="Turn a component off.")]
Enable = Annotated[
    list[str] | None, typer.Option("--enable", metavar="C", help="Turn a component on, starting from none.")
]
Alternatives = Annotated[
    list[str] | None, typer.Option("--alternative", metavar="C=NAME", help="What off means for a component.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Match = Literal["flops", "tokens", "seconds"]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder of the results.")]
Jobs = Annotated[int | None, typer.Option("--jobs", help="Runs at a time.")]
Source = Annotated[
    str,
    typer.Argument(
        help='"stdlib", hf:NAME, or a file or folder of text, JSON lines, JSON, CSV, Parquet, Arrow (gzip, Zstandard).'
    ),
]
TextField = Annotated[
    str,
    typer.Option("--text-field", metavar="F", help="Of rows, as in body or a.b; default: text, or messages."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")]
At = Annotated[
    str, typer.Option("--at", metavar="PRESET", help="Show FLOPs per token at this size beside the measured ones.")
]
Wandb = Annotated[
    str, typer.Option("--wandb", metavar="PROJECT", help="Log curves to W&B too (offline without a key).")
]


@app.command()
def run(
    disable: Disable = None,
    enable: Enable = None,
    alternative: Alternatives = None,
    preset: Annotated[str, typer.Option(help="Sizes: a name, or a TOML file.")] = "",
    seeds: Annotated[int | None, typer.Option(help="Seeds of each variant.")] = None,
    match: Annotated[Match, typer.Option(help="What all variants have equal.")] = "flops",
    budget: Annotated[str, typer.Option(metavar="X", help="Of one run, in the unit of --match: 2e12, 300k, 60.")] = "",
    margin: Annotated[float, typer.Option(help="Differences up to this are of no interest, in nats.")] = 0.005,
    data: Annotated[str, typer.Option(help='Corpus: "stdlib", a file or folder, or hf:NAME.')] = "",
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

    alternatives, preset = _pairs(alternative or []), preset or _default_preset()
    left_out = tuple(dict.fromkeys((*(without or ()), *unavailable(data, preset))))
    study = Study(
        question=question(disable or [], enable or [], alternatives, left_out),
        preset=preset,
        disable=tuple(disable or ()),
        enable=tuple(enable or ()),
        without=left_out,
        alternatives=alternatives,
        match=match,
        budget=_number(budget, "--budget") if budget else None,
        n_seeds=seeds,
        margin_nats=margin,
        data=data,
        text_field=text_field,
        trainer={} if learning_rate is None else {"learning_rate": learning_rate},
        backends=_pairs(backend or [], "--backend", "SLOT=NAME, for example attention=triton"),
    )
    _run_study(study, out=out, n_parallel=jobs, dry_run=dry_run, wandb_project=wandb, json=json, at=at)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="A study file.")],
    out: Out = None,
    jobs: Jobs = None,
    wandb: Wandb = "",
    at: At = "v3-671b",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Run what a study file asks for, as far as it has not been run, and report."""
    from ablate.runs.study import read_study

    _run_study(read_study(file), out=out, n_parallel=jobs, dry_run=dry_run, wandb_project=wandb, json=json, at=at)


def _run_study(study: Any, *, json: bool, at: str, **options: Any) -> None:
    from ablate.sweep.console import ConsoleDisplay
    from ablate.sweep.run import Options, run_study

    display = ConsoleDisplay()
    done = run_study(study, Options(**options), display)
    if done.outcome is None:
        if json:
            from ablate.spec.decoding import encode

            _print_json(encode(done.plan))
        return
    if done.outcome.interrupted:
        display.say(f"stopped; records and checkpoints are in {done.folder}, and the same command goes on from there")
        raise typer.Exit(INTERRUPTED)
    _report(done.folder, ("html", "md"), json=json, at=at)
    if "failed" in done.outcome.status.values():
        raise typer.Exit(1)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a study.")],
    format: Annotated[Literal["html", "md", "json"] | None, typer.Option(help="Only this one.")] = None,
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
        _print_json(reports.to_json(content))


@app.command()
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
    margin: Annotated[float, typer.Option(help="Effects up to this are of no interest.")] = 0.0,
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
        _print_json(result.to_json())
    else:
        typer.echo(render_text(result))


@app.command()
def components(name: Annotated[str | None, typer.Argument(metavar="[C]", help="Only this one.")] = None) -> None:
    """List the components, or explain one."""
    from ablate.components.listing import card, overview

    typer.echo(card(name) if name else overview())


@app.command()
def account(
    preset: Annotated[str, typer.Option(help="Sizes: a name, or a TOML file.")] = "",
    model: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="A model of your own.")] = None,
    disable: Disable = None,
    enable: Enable = None,
    alternative: Alternatives = None,
    sequence_length: Annotated[int | None, typer.Option(help="Default: the preset's.")] = None,
    json: Json = False,
) -> None:
    """Parameters, FLOPs, cache and memory of a model, in closed form."""
    from ablate.presets.account import account_model, account_preset, render

    if model is not None:
        if preset or disable or enable or alternative:
            raise ValueError(
                "--model describes a whole model; give it without --preset, --disable, --enable, --alternative"
            )
        figures = account_model(model, sequence_length)
    else:
        figures = account_preset(
            preset or _default_preset(), disable or [], enable or [], _pairs(alternative or []), sequence_length
        )
    if json:
        _print_json(figures)
    else:
        typer.echo(render(figures))


@data_app.command("prepare")
def data_prepare(
    source: Source = "stdlib",
    vocab_size: Annotated[int, typer.Option(help="Tokens of the byte-level BPE.")] = 1024,
    max_bytes: Annotated[int | None, typer.Option(help="Read no more than this.")] = None,
    text_field: TextField = "",
) -> None:
    """Split, tokenise and cache a corpus."""
    from ablate.data.prepare import prepare

    corpus = prepare(source, vocab_size=vocab_size, max_bytes=max_bytes, text_field=text_field, progress=_say)
    typer.echo(corpus.folder)


@data_app.command("inspect")
def data_inspect(
    source: Source = "stdlib",
    vocab_size: Annotated[int, typer.Option(help="Tokens of the byte-level BPE.")] = 1024,
    max_bytes: Annotated[int | None, typer.Option(help="Read no more than this.")] = None,
    text_field: TextField = "",
) -> None:
    """What is in a corpus: documents, bytes, tokens, a sample."""
    from ablate.data.corpus import inspect
    from ablate.data.prepare import prepare

    corpus = prepare(source, vocab_size=vocab_size, max_bytes=max_bytes, text_field=text_field, progress=_say)
    _print_json(inspect(corpus))


@app.command()
def distill(
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder of the text.")],
    data: Annotated[str, typer.Option(help='Corpus: "stdlib", a file or folder, or hf:NAME.')] = "stdlib",
    teacher: Annotated[
        str,
        typer.Option(
            help="A run's weights, smollm2-135m, hf:NAME, or an OpenAI-compatible URL; default: train a small one."
        ),
    ] = "",
    model: Annotated[str, typer.Option(help="Of an endpoint.")] = "",
    key_variable: Annotated[str, typer.Option(help="Environment variable with an endpoint's key.")] = "",
    tokens: Annotated[str, typer.Option(help="To keep.")] = "250k",
    temperature: Annotated[float, typer.Option(help="Of sampling.")] = 0.8,
    seed: Annotated[int, typer.Option(help="Of prompts and sampling.")] = 0,
) -> None:
    """Let a teacher write text from prompts of a corpus, for the component `distill`."""
    from ablate.sweep.distill import Request
    from ablate.sweep.distill import distill as write

    request = Request(
        out=out,
        source=data,
        teacher=teacher,
        model=model,
        key_variable=key_variable,
        n_tokens=round(_number(tokens, "--tokens")),
        temperature=temperature,
        seed=seed,
    )
    write(request, _say)
    typer.echo(out)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run: results/STUDY/runs/ID.")],
    format: Annotated[Literal["hf"], typer.Option(help="hf: a folder for transformers.")] = "hf",
    out: Out = None,
) -> None:
    """Write a run's weights for other programs."""
    from ablate.sweep.export import export_run

    folder, notes = export_run(run, out)
    for note in notes:
        _say(f"note: {note}")
    typer.echo(folder)


@app.command()
def bench(
    group: Annotated[
        Literal["kernels", "attention", "moe", "fp8", "loss", "norm", "step"],
        typer.Argument(metavar="GROUP", help="kernels (all of them), attention, moe, fp8, loss, norm, or step."),
    ] = "kernels",
    preset: Annotated[str, typer.Option(help="Sizes of `step`; default: cpu, or h200-d1024 on a GPU.")] = "",
    tune: Annotated[bool, typer.Option("--tune", help="Find the kernels' configurations for this GPU.")] = False,
    limit: Annotated[float | None, typer.Option(metavar="SECONDS", help="Begin nothing after this.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", hidden=True)] = False,  # every path, figures without meaning
    out: Out = None,
    json: Json = False,
) -> None:
    """Time every operation on every backend of this machine, once its numbers are right."""
    from ablate.bench.command import run_bench
    from ablate.bench.render import render

    document = run_bench(group, preset=preset, tune=tune, smoke=smoke, out=out, limit_s=limit, say=_say)
    if json:
        _print_json(document)
    else:
        typer.echo(render(document))


@app.command()
def doctor(json: Json = False) -> None:
    """What this machine can do."""
    from ablate.doctor import examine, render

    facts = examine()
    if json:
        _print_json(facts)
    else:
        typer.echo(render(facts))


def _say(message: str) -> None:
    typer.echo(message, err=True)


def _print_json(document: Any) -> None:
    import json

    typer.echo(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))


def _default_preset() -> str:
    """`cpu` on a machine without a GPU. Asked of the driver, since importing torch takes seconds."""
    from ablate.spec.machine import has_gpu

    return "h200-d512" if has_gpu() else "cpu"


def _pairs(
    given: list[str], option: str = "--alternative", form: str = "COMPONENT=NAME, for example moe=coarse"
) -> dict[str, str]:
    pairs = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not (name and equals and value):
            raise ValueError(f"{option} is {item!r}; it takes {form}")
        pairs[name] = value
    return pairs


SUFFIXES = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}


def _number(given: str, option: str) -> float:
    """A number with an optional suffix k, M, G, T, P or E."""
    factor = SUFFIXES.get(given[-1:], 1.0)
    try:
        return float(given[:-1] if factor != 1.0 else given) * factor
    except ValueError:
        raise ValueError(f"{option} is {given!r}; it takes a number such as 2e12 or 300k") from None


def _refuse_empty(arguments: list[str]) -> None:
    """ValueError for an empty value, as an unset shell variable leaves it: it would count as a default or as "."."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        name, equals, value = argument.partition("=")
        if not argument.strip():
            where = f"the value of {before}" if before.startswith("-") else "an argument"
        elif name.startswith("--") and equals and not value.strip():
            where = f"the value of {name}"
        else:
            continue
        raise ValueError(f"{where} is empty; give one, or leave it out for the default")


def _say_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(version("dsv3-ablate"))
        raise typer.Exit


@app.callback()
def front(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """What was each DeepSeek-V3 change worth? Matched-compute ablations with intervals."""


def main() -> None:
    """The console script. Bad input is one line and exit code 2."""
    try:
        _refuse_empty(sys.argv[1:])
        app()
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except RunFailed as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
