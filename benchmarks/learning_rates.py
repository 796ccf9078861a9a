"""Held-out loss of both sides of a comparison against the learning rate: is one shared rate fair to both?

    python benchmarks/learning_rates.py --preset cpu --disable mtp --rates 0.002,0.004,0.008 --out results/rates

Prints a table (mean over seeds, nats per token) and the vertex of a parabola in the logarithm of the rate for each
variant; writes it as JSON too. Runs that are in --out already are not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from ablate.runs.store import Store
from ablate.runs.study import Study
from ablate.sweep.console import ConsoleDisplay
from ablate.sweep.run import Options, run_study


def main() -> None:
    arguments = _arguments()
    study = Study(
        question="Where is the optimum learning rate of each variant?",
        preset=arguments.preset,
        disable=tuple(arguments.disable),
        n_seeds=arguments.seeds,
        first_seed=arguments.first_seed,
        budget=arguments.budget,
    )
    losses: dict[str, dict[float, list[float]]] = {}
    for rate in arguments.rates:
        at_rate = dataclasses.replace(study, trainer={**arguments.trainer, "learning_rate": rate})
        options = Options(out=arguments.out / f"rate-{rate:g}", n_parallel=arguments.jobs)
        done = run_study(at_rate, options, ConsoleDisplay())
        store = Store(done.folder)
        for variant in done.plan.variants:
            records = [store.read(identity) for identity in variant.run_ids]
            found = [r.metrics["nats_per_token"] if r and r.status == "finished" else math.nan for r in records]
            losses.setdefault(variant.name, {})[rate] = found
    _print(losses)
    document = {"preset": arguments.preset, "nats_per_token": {v: list(c.items()) for v, c in losses.items()}}
    (arguments.out / "learning_rates.json").write_text(json.dumps(document, indent=1) + "\n")


def _print(losses: dict[str, dict[float, list[float]]]) -> None:
    for variant, curve in losses.items():
        print(variant)
        for rate, values in curve.items():
            spread = f"sd {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            print(f"  {rate:<8g} {statistics.fmean(values):.4f}  {spread}")
        print(f"  optimum  {_optimum(curve):.3g}")


def _optimum(curve: dict[float, list[float]]) -> float:
    """Vertex of the parabola through the three rates around the best one; the best rate itself at an end."""
    rates = sorted(curve)
    means = [statistics.fmean(curve[rate]) for rate in rates]
    best = min(range(len(rates)), key=means.__getitem__)
    if best in (0, len(rates) - 1):
        return rates[best]
    around = slice(best - 1, best + 2)
    a, b, _ = np.polyfit(np.log(rates[around]), means[around], 2)
    return float(np.exp(-b / (2 * a)))


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--disable", action="append", required=True)
    parser.add_argument("--rates", type=lambda text: [float(r) for r in text.split(",")], required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=100, help="not the seeds of the study that uses the rate")
    parser.add_argument("--budget", type=float, help="training FLOPs of a run; default: the preset's")
    parser.add_argument("--trainer", type=json.loads, default={}, help="JSON of trainer fields to replace")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
