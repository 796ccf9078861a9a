"""The answer: which change mattered, from every kind of evidence there is; or the gap between two models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ablate.commands.options import Json, print_json

app = typer.Typer()


@app.command(epilog="Example: dsv3-ablate answer --out reports/answer")
def answer(
    study: Annotated[
        list[Path] | None,
        typer.Option("--study", metavar="DIR", help="Folder of a study; several. Default: those of reports/."),
    ] = None,
    preset: Annotated[str, typer.Option(help="At whose size figures are exact and speed is simulated.")] = "v3-671b",
    cluster: Annotated[str, typer.Option(help="Where speed is simulated.")] = "h800-2048",
    gap: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--gap",
            metavar="A B",
            help="Instead: why one model took fewer GPU hours than another.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the page. Default: results/answer.")
    ] = None,
    brief: Annotated[
        bool, typer.Option("--brief", help="Print sentences, picture and table as Markdown, for a README.")
    ] = False,
    json: Json = False,
) -> None:
    """Which change mattered: exact, simulated, measured here and published, side by side."""
    if gap is not None:
        if study or out or brief or preset != "v3-671b":
            raise ValueError("--gap compares two models by their totals; give it with --cluster and --json alone")
        _gap(gap, cluster, json)
        return
    _page(study or [], preset, cluster, out or Path("results") / "answer", brief=brief, json=json)


def _gap(gap: tuple[str, str], cluster: str, json: bool) -> None:
    from ablate.evidence.gap import gap_document

    document, text = gap_document(*gap, cluster)
    if json:
        print_json(document)
    else:
        typer.echo(text)


def _page(studies: list[Path], preset: str, cluster: str, out: Path, **how: Any) -> None:
    from rich.console import Console

    from ablate.evidence.changes.content import build
    from ablate.files import replace_file
    from ablate.report import which_change
    from ablate.report.which_change.links import towards
    from ablate.report.which_change.terminal import render

    content = build(preset, cluster, studies)
    page = which_change.page(content, out)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in which_change.files(content, out).items():
        replace_file(out / name, text)
        paths.append(out / name)
    if how["brief"]:
        typer.echo(which_change.brief(page, towards(out / which_change.PICTURE, Path.cwd())))
        return
    Console(stderr=True, highlight=False).print(render(content, page, paths))
    if how["json"]:
        print_json(which_change.document(content, out))
