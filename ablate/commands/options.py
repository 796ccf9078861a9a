"""What commands share: options, how values are read, where results and messages go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

INTERRUPTED = 130  # exit code

Disable = Annotated[list[str] | None, typer.Option("--disable", metavar="C", help="Turn a component off.")]
Enable = Annotated[
    list[str] | None, typer.Option("--enable", metavar="C", help="Turn a component on, starting from none.")
]
Alternatives = Annotated[
    list[str] | None,
    typer.Option(
        "--alternative", metavar="C=NAME", help="What off means for a component. Default: its first alternative."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Match = Literal["flops", "tokens", "seconds"]
ZeroStage = Annotated[
    int | None,
    typer.Option(metavar="0|1", help="1: optimizer states divided over ranks (ZeRO-1). Default: the preset's."),
]
Recompute = Annotated[
    Literal["none", "full"] | None,
    typer.Option(help="Activations: full computes every block again in the backward pass. Default: the preset's."),
]
Seeds = Annotated[
    int | None,
    typer.Option(
        "--seeds",
        metavar="N",
        help="Seeds of each variant; more than before: only the new ones run. Default: the preset's.",
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision", metavar="X", help="Plan the seeds for an interval of ± X: 0.01 (nats) or 3% (compute)."
    ),
]
Until = Annotated[
    Literal["resolved"] | None,
    typer.Option("--until", help="Read at three planned looks, and stop at the one that decides everything."),
]
MaxSeeds = Annotated[
    int | None,
    typer.Option("--max-seeds", metavar="N", help="Most that --precision (default 100) or --until (20) may take."),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Folder of the results. Default: under results/, named by the question."),
]
Jobs = Annotated[int | None, typer.Option("--jobs", help="Runs at a time. Default: as many as cores and memory allow.")]
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
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print the plan with its time and stop; trains nothing but a probe of speed under --match seconds.",
    ),
]
Price = Annotated[float | None, typer.Option("--price", metavar="X", help="Of an hour of one device; with --dry-run.")]
Noise = Annotated[
    Path | None,
    typer.Option("--noise", metavar="DIR", help="A study whose noise tells the width to expect; with --dry-run."),
]
Timeline = Annotated[
    int,
    typer.Option(
        "--timeline", metavar="N", help="Record what the ranks do in N steps in the middle of each run; 3 are enough."
    ),
]
At = Annotated[
    str, typer.Option("--at", metavar="PRESET", help="Show FLOPs per token at this size beside the measured ones.")
]
Checkpoints = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Go on from the checkpoints of the same runs on other ranks: a study's folder."),
]
Wandb = Annotated[
    str,
    typer.Option("--wandb", metavar="PROJECT", help="Log curves and the report to W&B too (offline without a key)."),
]


def say(message: str) -> None:
    typer.echo(message, err=True)


def print_json(document: Any) -> None:
    import json

    typer.echo(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))


def default_preset() -> str:
    """`cpu` on a machine without a GPU. Torch is asked, which takes seconds, only where there is a driver."""
    from ablate.spec.machine import has_gpu

    return "h200-d512" if has_gpu() else "cpu"


def pairs(
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


def number(given: str, option: str) -> float:
    """A number with an optional suffix k, M, G, T, P or E."""
    factor = SUFFIXES.get(given[-1:], 1.0)
    try:
        return float(given[:-1] if factor != 1.0 else given) * factor
    except ValueError:
        raise ValueError(f"{option} is {given!r}; it takes a number such as 2e12 or 300k") from None
