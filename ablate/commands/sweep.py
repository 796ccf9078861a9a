"""Sweeps: run a study file here or on a cluster, and see and end what is going on, from any shell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from ablate.commands.options import (
    At,
    Checkpoints,
    DryRun,
    Jobs,
    Json,
    MaxSeeds,
    Noise,
    Out,
    PrecisionOption,
    Price,
    Seeds,
    Timeline,
    Until,
    Wandb,
    print_json,
    say,
)
from ablate.commands.study import run_and_report

app = typer.Typer()


class Sweeps(TyperGroup):
    """A group whose first argument may be a study file as well: `sweep FILE.toml` is `sweep run FILE.toml`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


sweeps = typer.Typer(cls=Sweeps, no_args_is_help=True, help="Run a study file, here or on a cluster.")
app.add_typer(sweeps, name="sweep", help="Run a study file: sweep FILE.toml. What is going on: sweep status DIR.")

Place = Annotated[Path, typer.Argument(metavar="DIR|FILE", help="Folder of a study, or its study file.")]


@sweeps.command(name="run", hidden=True, epilog="Example: dsv3-ablate sweep sweeps/leave-one-out.toml --until resolved")
def run(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="A study file.")],
    seeds: Seeds = None,
    precision: PrecisionOption = None,
    until: Until = None,
    max_seeds: MaxSeeds = None,
    out: Out = None,
    executor: Annotated[Literal["local", "slurm"], typer.Option(help="Where runs are executed.")] = "local",
    cluster: Annotated[str, typer.Option(metavar="NAME", help="clusters/NAME.toml, with --executor slurm.")] = "",
    jobs: Jobs = None,
    wandb: Wandb = "",
    checkpoints: Checkpoints = None,
    timeline: Timeline = 0,
    at: At = "v3-671b",
    dry_run: DryRun = False,
    price: Price = None,
    noise: Noise = None,
    json: Json = False,
) -> None:
    """Run what a study file asks for, as far as it has not been run, and report."""
    from ablate.runs.study import read_study, with_seeds

    if (executor == "slurm") != bool(cluster):
        raise ValueError("--executor slurm and --cluster NAME belong together; give both, or none to run here")
    study = with_seeds(read_study(file), seeds, precision or "", until or "", max_seeds)
    options = {"out": out, "n_parallel": jobs, "dry_run": dry_run, "wandb_project": wandb, "cluster": cluster}
    options |= {"checkpoints": checkpoints, "timeline": timeline}
    run_and_report(study, json=json, at=at, pricing={"per_hour": price, "noise": noise}, **options)


@sweeps.command(epilog="Example: dsv3-ablate sweep status results/FOLDER")
def status(place: Place, json: Json = False) -> None:
    """How many runs of a study are done, go on, wait or failed."""
    from ablate.sweep.console import StatusDisplay
    from ablate.sweep.status import find_study, look

    found = look(find_study(place))
    if json:
        from ablate.spec.decoding import encode

        print_json(encode(found))
    else:
        StatusDisplay().show(found)


@sweeps.command(epilog="Example: dsv3-ablate sweep watch results/FOLDER")
def watch(place: Place, every: Annotated[float, typer.Option(help="Seconds between two looks.")] = 5.0) -> None:
    """The same, live, until nothing is left to do or Ctrl-C; the runs do not mind."""
    from ablate.sweep.console import StatusDisplay
    from ablate.sweep.status import find_study, look

    if not 0.1 <= every <= 86_400:
        raise ValueError(f"--every is {every}; it must be between 0.1 and 86400 seconds")
    folder = find_study(place)
    StatusDisplay().follow(lambda: look(folder), every)


@sweeps.command(epilog="Example: dsv3-ablate sweep cancel results/FOLDER")
def cancel(place: Place) -> None:
    """End what a study has on a cluster and on this machine, with checkpoints: `sweep FILE.toml` goes on from there."""
    from ablate.quantities import plural
    from ablate.sweep.status import cancel_study, find_study

    n_runs, n_commands = cancel_study(find_study(place))
    said = [f"{plural(n_runs, 'run')} taken from the cluster's queue"] if n_runs else []
    said += [f"{plural(n_commands, 'command')} on this machine asked to stop"] if n_commands else []
    went_on = "the study's command goes on from the checkpoints"
    say("; ".join([*said, went_on]) if said else "nothing of this study waits in a queue or is run by this machine")
