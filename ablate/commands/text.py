"""Text: corpora, and what a teacher writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ablate.commands.options import Source, TextField, default_preset, number, print_json, say

app = typer.Typer()
data_app = typer.Typer(no_args_is_help=True, help="Corpora: prepare one, or look at it.")
app.add_typer(data_app, name="data")


@data_app.command("prepare", epilog="Example: dsv3-ablate data prepare my-texts/ --vocab-size 4096")
def data_prepare(
    source: Source = "stdlib",
    vocab_size: Annotated[int, typer.Option(help="Tokens of the byte-level BPE.")] = 1024,
    max_bytes: Annotated[int | None, typer.Option(help="Read no more than this.")] = None,
    text_field: TextField = "",
) -> None:
    """Split, tokenise and cache a corpus."""
    from ablate.data.prepare import prepare

    corpus = prepare(source, vocab_size=vocab_size, max_bytes=max_bytes, text_field=text_field, progress=say)
    typer.echo(corpus.folder)


@data_app.command("inspect", epilog="Example: dsv3-ablate data inspect stdlib")
def data_inspect(
    source: Source = "stdlib",
    vocab_size: Annotated[int, typer.Option(help="Tokens of the byte-level BPE.")] = 1024,
    max_bytes: Annotated[int | None, typer.Option(help="Read no more than this.")] = None,
    text_field: TextField = "",
) -> None:
    """What is in a corpus: documents, bytes, tokens, a sample."""
    from ablate.data.corpus import inspect
    from ablate.data.prepare import prepare

    corpus = prepare(source, vocab_size=vocab_size, max_bytes=max_bytes, text_field=text_field, progress=say)
    print_json(inspect(corpus))


@app.command(epilog="Example: dsv3-ablate distill --out text --tokens 50k")
def distill(
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="New folder of the text; default: where `run --data` finds it.")
    ] = None,
    data: Annotated[str, typer.Option(help='Corpus: "stdlib", a file or folder, or hf:NAME.')] = "stdlib",
    teacher: Annotated[
        str,
        typer.Option(
            help="A run's weights, smollm2-135m, hf:NAME, or an OpenAI-compatible URL; default: train a small one."
        ),
    ] = "",
    model: Annotated[str, typer.Option(help="Of an endpoint.")] = "",
    key_variable: Annotated[str, typer.Option(help="Environment variable with an endpoint's key.")] = "",
    preset: Annotated[str, typer.Option(help="Whose vocabulary counts the tokens; default: that of `run`.")] = "",
    tokens: Annotated[str, typer.Option(help="To keep.")] = "250k",
    temperature: Annotated[float, typer.Option(help="Of sampling.")] = 0.6,
    seed: Annotated[int, typer.Option(help="Of prompts and sampling.")] = 0,
) -> None:
    """Let a teacher write text from prompts of a corpus, for the component `distill`."""
    from ablate.sweep.distill import Request
    from ablate.sweep.distill import distill as write

    request = Request(
        preset=preset or default_preset(),
        out=out,
        source=data,
        teacher=teacher,
        model=model,
        key_variable=key_variable,
        n_tokens=round(number(tokens, "--tokens")),
        temperature=temperature,
        seed=seed,
    )
    typer.echo(write(request, say).folder)
