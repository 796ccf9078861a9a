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
        self._sample: Observation | None = None  # the one being taken
        self._sampled_step = -1
        self._metrics: dict[str, float] = {}

    def metrics(self) -> dict[str, float]:
        """Of the newest sample; empty before the first."""
        return dict(self._metrics)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        every = max(1, pl_module.run.n_steps // SAMPLES_PER_RUN)
        if step % every == 0 and step != self._sampled_step:
            self._sampled_step, self._sample = step, Observation()
            observe(pl_module, self._sample)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._sample is not None:
            self._metrics, self._sample = self._sample.metrics(), None
            observe(pl_module, None)

    def state_dict(self) -> dict[str, Any]:
        return {"sampled_step": self._sampled_step, "metrics": self._metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._sampled_step, self._metrics = state_dict["sampled_step"], state_dict["metrics"]


def observe(model: Any, observation: Observation | None) -> None:
    """Every FP8 map of the model reports to `observation` until told otherwise."""
    for module in model.modules():
        if isinstance(module, Fp8Linear | Fp8GroupedLinear):
            module.observation = observation
