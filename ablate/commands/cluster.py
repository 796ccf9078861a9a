"""The cluster that is not at hand, what others published, and what accounts for the gap between two models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ablate.commands.options import Alternatives, Disable, Enable, Json, pairs, print_json

app = typer.Typer()


@app.command(epilog="Example: dsv3-ablate simulate --cluster h800-2048 --preset v3-671b")
def simulate(
    cluster: Annotated[str, typer.Option(help="h800-2048, h100-1024, h200-8, or a TOML file.")],
    preset: Annotated[str, typer.Option(help="Sizes: a name, or a TOML file.")] = "",
    model: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="A model of your own.")] = None,
    disable: Disable = None,
    enable: Enable = None,
    alternative: Alternatives = None,
    batch: Annotated[int | None, typer.Option(help="Sequences of a step; default: the preset's.")] = None,
    sequence_length: Annotated[int | None, typer.Option(help="Default: the preset's.")] = None,
    pipeline: Annotated[int | None, typer.Option(help="Pipeline ranks.")] = None,
    tensor: Annotated[int | None, typer.Option(help="Tensor ranks.")] = None,
    expert: Annotated[int | None, typer.Option(help="Expert ranks.")] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Sequences of a micro-batch.")] = None,
    recompute: Annotated[Literal["none", "selective", "full"] | None, typer.Option(help="Of activations.")] = None,
    rates: Annotated[
        Literal["profile", "published"], typer.Option(help="The cluster's measured profile, or kernels alone.")
    ] = "profile",
    profile: Annotated[str, typer.Option(metavar="NAME", help="A measured profile: a name, or a TOML file.")] = "",
    bench: Annotated[Path | None, typer.Option(metavar="FILE.json", help="What `bench --json` measured.")] = None,
    assume: Annotated[list[str] | None, typer.Option(metavar="INPUT=VALUE", help="Set an input.")] = None,
    search: Annotated[bool, typer.Option("--search", help="Find the fastest layout that fits.")] = False,
    attribute: Annotated[bool, typer.Option("--attribute", help="Share the speed out among the components.")] = False,
    json: Json = False,
) -> None:
    """A training step on a cluster: seconds, MFU, bubble, memory, with ranges. Simulated."""
    from ablate.cluster.question import Request
    from ablate.evidence.simulation import attributed, simulated

    layout = {
        "pipeline": pipeline, "tensor": tensor, "expert": expert, "micro_batch": micro_batch, "recompute": recompute,
    }  # fmt: skip
    request = Request(
        cluster=cluster, preset=preset, model=model, disable=disable or [], enable=enable or [],
        alternatives=pairs(alternative or []), batch=batch, sequence_length=sequence_length,
        layout={name: value for name, value in layout.items() if value is not None}, rates=rates, profile=profile,
        bench=bench, assume=_numbers(assume or []),
    )  # fmt: skip
    if attribute and search:
        raise ValueError("--attribute compares variants in one layout, and --search changes it; give one of them")
    _show(attributed(request) if attribute else simulated(request, search=search), json)


@app.command(epilog="Example: dsv3-ablate evidence mtp")
def evidence(
    component: Annotated[str | None, typer.Argument(metavar="[C]", help="Only of this component.")] = None,
    json: Json = False,
) -> None:
    """What papers and logs report of each change, with scale, runs and source."""
    from ablate.evidence.published import evidence_document

    _show(evidence_document(component), json)


def _show(found: tuple[dict[str, Any], str], json: bool) -> None:
    document, text = found
    if json:
        print_json(document)
    else:
        typer.echo(text)


def _numbers(given: list[str]) -> dict[str, float]:
    found = {}
    for name, value in pairs(given, "--assume", "INPUT=VALUE, for example bf16_product=0.7").items():
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(f"--assume {name} is {value!r}; it takes a number") from None
    return found
