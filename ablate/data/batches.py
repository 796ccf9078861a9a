"""The training data as a LightningDataModule: micro-batches of windows, placed by step and never by history."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from ablate.data.corpus import Corpus
from ablate.data.windows import Windows, batch_indices
from ablate.spec.run import RunSpec

Batch = dict[str, Any]  # "window_BT1": int64 (B, T + 1); a text node may add to it


class Batches(LightningDataModule):
    """Batches of optimizer steps, cut into micro-batches. A resumed run starts at the trainer's own step.

    `read` maps a step to the windows of its batch, int64 (batch_size, T + 1); by default those of the raw corpus.
    """

    def __init__(self, run: RunSpec, corpus: Corpus, read: Callable[[int], np.ndarray] | None = None) -> None:
        super().__init__()
        self.run = run
        self.windows = Windows(corpus.train, run.trainer.sequence_length)
        self.read = read or self.raw

    def raw(self, step: int) -> np.ndarray:
        return self.windows[self.indices(step)]

    def indices(self, step: int) -> np.ndarray:
        """Raw windows of a step: the same for every variant of one seed."""
        trainer = self.run.trainer
        return batch_indices(n_windows=len(self.windows), seed=self.run.seed, step=step, batch_size=trainer.batch_size)

    def batch(self, windows_BT1: np.ndarray) -> Batch:
        return {"window_BT1": torch.from_numpy(windows_BT1)}

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        return DataLoader(_Steps(self, start=self.trainer.global_step), batch_size=None)


class _Steps(IterableDataset[Any]):
    def __init__(self, batches: Batches, start: int) -> None:
        self.batches, self.start = batches, start

    def __iter__(self) -> Iterator[Any]:
        run, size = self.batches.run, self.batches.run.trainer.micro_batch_size
        for step in range(self.start, run.n_steps):
            windows = self.batches.read(step)
            micro_batches = (self.batches.batch(windows[i : i + size]) for i in range(0, len(windows), size))
            if run.trainer.ranks.world > 1:
                yield list(micro_batches)  # a schedule takes a whole step's
            else:
                yield from micro_batches
