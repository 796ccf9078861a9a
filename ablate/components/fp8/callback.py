"""Underflow and largest magnitudes, read now and then while a model trains."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback

from ablate.components.fp8.module import Fp8GroupedLinear, Fp8Linear
from ablate.components.fp8.observation import Observation

SAMPLES_PER_RUN = 32


class UnderflowMonitor(Callback):
    """Observes one micro-batch, forward and backward, in `SAMPLES_PER_RUN` steps of a run; changes nothing."""

    def __init__(self) -> None:
        self._latest = Observation()
        self._observed_step = -1

    def metrics(self) -> dict[str, float]:
        """Of the newest sample; empty before the first."""
        return self._latest.metrics()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        every = max(1, trainer.max_steps // SAMPLES_PER_RUN)
        if step % every == 0 and step != self._observed_step:
            self._observed_step, self._latest = step, Observation()
            observe(pl_module, self._latest)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        observe(pl_module, None)


def observe(model: Any, observation: Observation | None) -> None:
    """Every FP8 map of the model reports to `observation` until told otherwise."""
    for module in model.modules():
        if isinstance(module, Fp8Linear | Fp8GroupedLinear):
            module.observation = observation
