"""What the Trainer, its callbacks and the data module cost over a bare loop of the same modules.

    python benchmarks/trainer_overhead.py --preset cpu --steps 60 --rounds 3

Both train the same variant from the same weights on the same batches; rounds are in turn. Printed are the median
seconds of a step of each, and the overhead in milliseconds and as a share.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from ablate.components.variants import Variant
from ablate.data.prepare import prepare
from ablate.presets import preset
from ablate.spec.machine import this_machine
from ablate.spec.run import RunSpec
from ablate.teachers.load import load_model
from ablate.training.callbacks import Curve, Keeper, Progress
from ablate.training.module import TrainingModule
from ablate.training.trainer import slot_callbacks, trainer_for


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    base = preset(arguments.preset)
    spec = Variant.full(base).without(arguments.disable).resolve(base).for_machine(this_machine())
    corpus = prepare(base.data.source, vocab_size=base.model.vocab_size)
    trainer = replace(spec.trainer, n_evaluations=1, batch_size=arguments.batch, micro_batch_size=arguments.batch)
    run = replace(spec, trainer=trainer).run(corpus_hash=corpus.hash, seed=0, n_steps=arguments.steps)
    bare, whole = [], []
    for _ in range(arguments.rounds):
        bare.append(_bare(run, corpus) / arguments.steps)
        whole.append(_trainer(run, corpus) / arguments.steps)
    ours, loop = statistics.median(whole), statistics.median(bare)
    print(f"bare loop {loop * 1e3:8.2f} ms a step")
    print(f"Trainer   {ours * 1e3:8.2f} ms a step")
    print(f"overhead  {(ours - loop) * 1e3:8.2f} ms, {(ours - loop) / loop:.1%}")


def _bare(run: RunSpec, corpus: Any) -> float:
    module = TrainingModule(run)
    module.configure_model()
    parts = module.configure_optimizers()
    optimizer, schedule = parts["optimizer"], parts["lr_scheduler"]["scheduler"]
    data = run.text.datamodule(run, corpus, load_model)
    start = time.perf_counter()
    for step in range(run.n_steps):
        loss = module.training_step(data.batch(data.read(step)), 0)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.model.parameters(), run.trainer.gradient_clip)
        optimizer.step()
        schedule.step()
        module.loads.add(module.routing)
        module.loads.counts = {}
    return time.perf_counter() - start


def _trainer(run: RunSpec, corpus: Any) -> float:
    """From the first batch to the last; the evaluation at the end is left out."""
    module = TrainingModule(run)
    module.configure_model()
    with tempfile.TemporaryDirectory() as folder:
        parts = slot_callbacks(run)
        curve = Curve(run, {}, parts)
        curve.steps = set()
        keeper = Keeper(Path(folder), every_s=1e9, curve=curve, stop=lambda: False)
        clock = _Span()
        callbacks = [clock, *parts, curve, keeper, Progress(run, lambda *_: None)]
        trainer = trainer_for(run, callbacks, folder=Path(folder))
        trainer.fit(module, datamodule=run.text.datamodule(run, corpus, load_model))
    return clock.seconds


class _Span(Callback):
    """Seconds between the start and the end of training."""

    seconds = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.seconds = -time.perf_counter()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds += time.perf_counter()


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--disable", action="append", default=[])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
