"""Which recipe answers best in the time given: batch, rate, warm-up, and tokens of a run against the number of runs.

    python benchmarks/recipe.py --preset cpu --disable mtp --seeds 6 --out results/recipe [--step-seconds FILE.json]

Runs one small study a recipe (the preset with one or two fields replaced) and prints for each the loss that the full
variant ends with, the standard deviation of a pair's difference (nats per token, and log of the training FLOPs for the
same loss), and the half-width that the interval of the gain would have if --minutes were spent on pairs of that recipe
alone. Seconds of a step are those of the records; where the machine had other work too, give those of an idle one:
`--time` measures them and writes step_seconds.json. Runs that are in --out already are not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
from pathlib import Path
from typing import Any

from scipy import stats

import ablate.report as reports
from ablate.presets import preset
from ablate.runs.store import Store
from ablate.runs.study import Study
from ablate.sweep.console import ConsoleDisplay
from ablate.sweep.run import Options, run_study
from ablate.sweep.variants import variants

# Name -> share of the preset's tokens, and trainer fields that replace its own. One at a time, and batch by rate.
RECIPES: dict[str, tuple[float, dict[str, Any]]] = {
    "preset": (1.0, {}),
    "half the tokens": (0.5, {}),
    "twice the tokens": (2.0, {}),
    "rate / 2": (1.0, {"rate": 0.5}),
    "rate / 1.4": (1.0, {"rate": 0.71}),
    "rate x 1.4": (1.0, {"rate": 1.41}),
    "rate x 2": (1.0, {"rate": 2.0}),
    "warm-up 0.05": (1.0, {"warmup_share": 0.05}),
    "warm-up 0.1": (1.0, {"warmup_share": 0.1}),
    "warm-up 0.05, rate / 1.4": (1.0, {"warmup_share": 0.05, "rate": 0.71}),
    "batch / 2, rate / 1.4": (1.0, {"batch": 0.5, "rate": 0.71}),
    "batch x 2": (1.0, {"batch": 2}),
    "batch x 2, rate x 1.4": (1.0, {"batch": 2, "rate": 1.41}),
    "decay 0.3": (1.0, {"decay_share": 0.3, "warmup_share": 0.1}),
}


def main() -> None:
    arguments = _arguments()
    measured = arguments.out / "step_seconds.json"
    if arguments.time:
        measured.write_text(json.dumps(_time(arguments), indent=1) + "\n")
    step_s = json.loads(measured.read_text()) if measured.exists() else {}
    rows = [_row(name, arguments, step_s) for name in RECIPES if not arguments.only or name in arguments.only]
    rows.sort(key=lambda row: row["half_width_log_flops"] or math.inf)
    text = _text(rows, arguments, idle=bool(step_s))
    print(text)
    (arguments.out / "README.md").write_text(text)
    document = {"preset": arguments.preset, "disable": arguments.disable, "minutes": arguments.minutes,
                "idle_step_s": bool(step_s), "recipes": rows}  # fmt: skip
    (arguments.out / "recipe.json").write_text(json.dumps(document, indent=1) + "\n")


def _study(name: str, arguments: argparse.Namespace, n_seeds: int) -> Study:
    base, (share, fields) = preset(arguments.preset).trainer, RECIPES[name]
    trainer = {key: value for key, value in fields.items() if key not in ("rate", "batch")}
    trainer["learning_rate"] = base.learning_rate * fields.get("rate", 1.0)
    trainer["batch_size"] = trainer["micro_batch_size"] = round(base.batch_size * fields.get("batch", 1))
    study = Study(question=f"recipe: {name}", preset=arguments.preset, disable=tuple(arguments.disable),
                  n_seeds=n_seeds, trainer=trainer)  # fmt: skip
    if share == 1.0:
        return study
    # The budget that a study without one takes, that of the first variant at the tokens of the preset, times the share.
    full = study.load_preset()
    flops = variants(study, full)[0][0].spec.model.cost(base.sequence_length).training_flops_per_token
    return dataclasses.replace(study, budget=share * full.n_tokens * flops)


def _folder(name: str, arguments: argparse.Namespace) -> Path:
    return arguments.out / "".join(c if c.isalnum() or c == "." else "-" for c in name)


def _row(name: str, arguments: argparse.Namespace, step_s: dict[str, dict[str, float]]) -> dict[str, Any]:
    options = Options(out=_folder(name, arguments), n_parallel=arguments.jobs)
    done = run_study(_study(name, arguments, arguments.seeds), options, ConsoleDisplay())
    document = reports.to_json(reports.build(done.folder))
    (gain,) = document["gains"] or ({"flops": {"low": None}, "matched": {"flops": {"sd": None}}},)
    store = Store(done.folder)
    records = {v.name: [store.read(identity) for identity in v.run_ids] for v in done.plan.variants}
    finished = {name: [r.metrics for r in found if r and r.status == "finished"] for name, found in records.items()}
    seconds = {
        v.name: step_s.get(name, {}).get(v.name, statistics.median(m["step_s"] for m in finished[v.name]))
        * v.n_all_steps
        for v in done.plan.variants
    }
    n = min(map(len, finished.values()))
    factor = stats.t.ppf(0.975, n - 1) / math.sqrt(n)
    low, high = gain["flops"]["low"], gain["flops"].get("high")
    sd = None if low is None else (high - low) / 2 / factor
    pairs = int(arguments.minutes * 60 * arguments.cores / sum(seconds.values()))
    return {
        "recipe": name,
        "n_steps": done.plan.variants[0].n_steps,
        "loss": statistics.fmean(m["nats_per_token"] for m in finished[done.plan.variants[0].name]),
        "pair_s": sum(seconds.values()),
        "pair_sd_nats": gain["matched"]["flops"]["sd"],
        "pair_sd_log_flops": sd,
        "log_flops": gain["flops"].get("estimate"),
        "pairs": pairs,
        "half_width_log_flops": None if sd is None or pairs < 2 else _half_width(sd, pairs),
    }


def _half_width(sd: float, pairs: int) -> float:
    return float(stats.t.ppf(0.975, pairs - 1)) * sd / math.sqrt(pairs)


def _time(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds of a step of both variants of every recipe, one run at a time on this machine as it is now."""
    found = {}
    for name in RECIPES:
        study = dataclasses.replace(_study(name, arguments, 1), match="seconds", budget=5.0)
        done = run_study(study, Options(out=arguments.out / "timing", dry_run=True), ConsoleDisplay())
        found[name] = {v.name: v.step_s or math.nan for v in done.plan.variants}
    return found


def _text(rows: list[dict[str, Any]], arguments: argparse.Namespace, *, idle: bool) -> str:
    """The curve as a page, the narrowest interval first."""
    how = "measured on the idle machine" if idle else "those of the records, from a machine that had other work too"
    lines = [
        "# Which recipe answers best in the time given?", "",
        f"Preset {arguments.preset}, {' + '.join(arguments.disable)}, {arguments.seeds} pairs of seeds each. "
        f"Half-width: of the 95 % interval of the log of the training FLOPs for the same loss, after "
        f"{arguments.minutes:g} minutes of {arguments.cores} cores. Seconds of a step: {how}.", "",
        "| recipe | loss | seconds a pair | sd of a pair, nats | sd of a pair, log FLOPs | pairs | half-width |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        cells = [row["pair_sd_nats"], row["pair_sd_log_flops"], row["half_width_log_flops"]]
        nats, log, width = ("–" if cell is None else f"{cell:.4f}" for cell in cells)
        lines.append(f"| {row['recipe']} | {row['loss']:.4f} | {row['pair_s']:.1f} | {nats} | {log} | {row['pairs']} | "
                     f"{width} |")  # fmt: skip
    return "\n".join([*lines, "", "Made by `python benchmarks/recipe.py`.", ""])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--disable", action="append")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--minutes", type=float, default=2.5, help="of training, which the half-width is given for")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--only", action="append", help="this recipe alone")
    parser.add_argument("--time", action="store_true", help="measure the seconds of a step first")
    parser.add_argument("--out", type=Path, default=Path("results/recipe"))
    arguments = parser.parse_args()
    arguments.disable = arguments.disable or ["mtp"]
    arguments.out.mkdir(parents=True, exist_ok=True)
    return arguments


if __name__ == "__main__":
    main()
