"""The app: every command, in the order of the help; bad input is one line and exit code 2."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ablate.commands import answer, cluster, machine, model, schedule, study, sweep, table, text
from ablate.commands.options import INTERRUPTED
from ablate.errors import RunFailed


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
for part in (answer, study, sweep, table, model, schedule, cluster, text, machine):
    app.add_typer(part.app)


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
