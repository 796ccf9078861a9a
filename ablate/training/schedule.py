"""The learning rate over a run."""

from __future__ import annotations

from ablate.spec.run import TrainerSpec


def learning_rate_factor(trainer: TrainerSpec, n_steps: int, step: int) -> float:
    """Warm-up, stable, decay: the share of the learning rate at optimizer step `step`, from 0.

    Linear warm-up; the decay is 1 - sqrt (arXiv:2405.18392) and would reach zero one step behind the last.
    """
    warmup = max(1, round(trainer.warmup_share * n_steps))
    decay = round(trainer.decay_share * n_steps)
    if step < warmup:
        return (step + 1) / warmup
    into_decay = step - (n_steps - decay)
    return 1.0 if into_decay < 0 else 1.0 - ((into_decay + 1) / (decay + 1)) ** 0.5
