"""What recording the ranks costs, and how near the simulator comes to what was recorded: schedules on gloo ranks.

    python benchmarks/timeline.py [--preset nano] [--ranks pipeline=2] [--pairs 40] [--out FILE.json] [SCHEDULE]...

Two neighbouring steps are a pair, of which one is recorded, which one being drawn. Printed are the mean of the log
ratio of their seconds, by the clock and of the processor alone, with its 95 % interval; the seconds of a span itself
times the spans of a step, as a share of the step; and the median and quartiles over the recorded steps of the
simulated step against the measured one. The load stands beside: on a machine with more to do than ranks clocks tell
little.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, IterableDataset

from ablate.attribution.verdicts import t_quantile
from ablate.cluster.measured import measure
from ablate.components.variants import Variant, fitting_micro_batch, on_ranks
from ablate.files import to_json
from ablate.parallel.launch import launch
from ablate.parallel.layout import schedule_of
from ablate.parallel.spans import Spans
from ablate.parallel.team import assemble
from ablate.presets import preset
from ablate.runs.environment import describe
from ablate.schedules.action import Action
from ablate.schedules.timeline import Timeline, aligned
from ablate.spec.machine import this_machine
from ablate.spec.ranks import Ranks, read_ranks
from ablate.spec.run import RunSpec
from ablate.training.ranks import RanksModule
from ablate.training.trainer import slot_callbacks, trainer_for

WARM_UP, SPANS = 4, 20_000  # steps; spans of which the seconds of one are the mean


class Alternating(Callback):
    """Records one step of each pair, and takes the seconds of all."""

    def __init__(self, spans: Spans, recorded: set[int]) -> None:
        self.spans, self.recorded = spans, recorded
        self.seconds: dict[int, tuple[float, float]] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        dist.barrier()  # so that a pair is as long as the work of its steps, and not as what came before
        self._begun = time.perf_counter(), time.process_time()
        if trainer.global_step in self.recorded:
            self.spans.start_step(trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.spans.end_step()
        now = time.perf_counter(), time.process_time()
        self.seconds[trainer.global_step - 1] = now[0] - self._begun[0], now[1] - self._begun[1]


class Windows(IterableDataset[Any]):
    """The micro-batches of each step: random tokens."""

    def __init__(self, run: RunSpec) -> None:
        self.run = run

    def __iter__(self) -> Iterator[Any]:
        trainer, generator = self.run.trainer, torch.Generator().manual_seed(0)
        shape = trainer.micro_batch_size, trainer.sequence_length + 1
        while True:
            yield [
                {"window_BT1": torch.randint(self.run.model.vocab_size, shape, generator=generator)}
                for _ in range(trainer.n_micro_batches)
            ]


def record(run: RunSpec, recorded: set[int], folder: str) -> tuple[dict[int, tuple[float, float]], Timeline, float]:
    """On each rank of a world: seconds of the steps, what was recorded, and seconds of a span."""
    rank, world = str(dist.get_rank()), str(dist.get_world_size())  # as torchrun leaves it
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "cost", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    team = assemble(run)
    spans, module = team.mesh.spans, RanksModule(run, team)
    spans.begin()
    watch = Alternating(spans, recorded)
    trainer = trainer_for(run, [watch, *slot_callbacks(run)], folder=Path(folder), team=team)
    trainer.fit(module, DataLoader(Windows(run), batch_size=None))
    every: list[Any] = [None] * team.mesh.ranks.world
    dist.all_gather_object(every, spans.recording())
    steps, error_s = aligned(every)
    timeline = Timeline(
        run_id="", n_data_ranks=run.trainer.ranks.data, clock=spans.clock, clock_error_s=error_s,
        n_cores=len(os.sched_getaffinity(0)), load=os.getloadavg()[0], steps=steps,
    )  # fmt: skip
    return watch.seconds, timeline, seconds_of_a_span(spans)


def seconds_of_a_span(spans: Spans) -> float:
    """Of the processor."""
    action, begun = Action("F", 0, 0), time.process_time()
    spans.start_step(-1)
    for _ in range(SPANS):
        with spans.of(action):
            pass
    spans.end_step()
    return (time.process_time() - begun) / SPANS


def run_of(name: str, ranks: Ranks, schedule: str, n_steps: int) -> RunSpec:
    base = on_ranks(preset(name), ranks)
    size = fitting_micro_batch(base.trainer.batch_size, base.trainer.micro_batch_size, ranks)
    base = replace(base, trainer=replace(base.trainer, micro_batch_size=size, branches=()))
    level = "on" if schedule == "dualpipe" else schedule
    spec = (Variant.full(base) | {"distill": "raw", "fp8": "bf16", "dualpipe": level}).resolve(base)
    spec = spec.for_machine(this_machine())
    return spec.run(corpus_hash="", seed=0, n_steps=n_steps, n_warmup_steps=0)


def ratio(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """Recorded over not recorded, minus 1, with the 95 % interval of the mean log ratio."""
    logs = [math.log(on / off) for on, off in pairs]
    mean, half = statistics.mean(logs), t_quantile(0.975, len(logs) - 1) * statistics.stdev(logs) / len(logs) ** 0.5
    return {"share": math.expm1(mean), "low": math.expm1(mean - half), "high": math.expm1(mean + half)}


def examine(run: RunSpec, n_pairs: int) -> dict[str, Any]:
    """One schedule: the cost of recording it, and the simulator against each recorded step."""
    draw, firsts = random.Random(0), range(WARM_UP, WARM_UP + 2 * n_pairs, 2)
    recorded = {first + draw.randrange(2) for first in firsts}
    with tempfile.TemporaryDirectory() as folder:
        found = launch(record, run.trainer.ranks.world, run, recorded, folder)
    (_, timeline, span_s), seconds = found[0], [each[0] for each in found]
    slowest = [[max(rank[n][i] for rank in seconds) for n in range(firsts.stop)] for i in (0, 1)]
    pairs = [[(s[n], s[n ^ 1]) for n in sorted(recorded)] for s in slowest]
    step_s, schedule = statistics.median(slowest[0]), schedule_of(run.trainer)
    steps = [measure(replace(timeline, steps=(step,)), schedule) for step in timeline.steps]
    n_spans = statistics.mean(len(spans) for step in timeline.steps for spans in step.ranks)
    return {
        "schedule": schedule.name, "pairs": n_pairs, "step_s": step_s, "clock": ratio(pairs[0]),
        "processor": ratio(pairs[1]), "spans_of_a_rank": n_spans, "span_s": span_s,
        "spans_share": n_spans * span_s / step_s, "load": timeline.load, "clock_error_s": timeline.clock_error_s,
        "simulated_difference": statistics.quantiles([each.simulated_difference for each in steps], n=4),
        "bubble_share": statistics.median(each.bubble_share for each in steps),
        "simulated_bubble_share": statistics.median(each.simulated.bubble_share for each in steps),
        "closed_form_share": measure(timeline, schedule).closed_form_share,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("schedules", nargs="*", default=["dualpipe", "1f1b"])
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--ranks", default="pipeline=2")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    ranks, found = read_ranks(given.ranks), []
    for name in given.schedules:
        row = examine(run_of(given.preset, ranks, name, WARM_UP + 2 * given.pairs), given.pairs)
        found.append(row)
        print(f"{name}: {1e3 * row['step_s']:.1f} ms a step, load {row['load']:.1f}")
        for what in ("clock", "processor"):
            r = row[what]
            print(f"  recorded, {what}: {100 * r['share']:+.2f} % [{100 * r['low']:+.2f}, {100 * r['high']:+.2f}]")
        print(f"  {row['spans_of_a_rank']:.0f} spans of {1e6 * row['span_s']:.2f} us: {100 * row['spans_share']:.3f} %")
        low, middle, high = (100 * x for x in row["simulated_difference"])
        print(f"  simulated step against measured: {middle:+.1f} % [quartiles {low:+.1f}, {high:+.1f}]")
        print(f"  bubble {row['bubble_share']:.1%}, simulated {row['simulated_bubble_share']:.1%}", flush=True)
    if given.out:
        head = {"preset": given.preset, "ranks": str(ranks), "environment": describe()}
        given.out.write_text(to_json(head | {"schedules": found}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
