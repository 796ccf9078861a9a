"""The learning rate over a run."""

from __future__ import annotations

from ablate.spec.run import RunSpec


def learning_rate_factor(run: RunSpec, step: int) -> float:
    """Warm-up, stable, decay: the share of the learning rate at optimizer step `step`, from 0.

    Linear warm-up; the decay is 1 - sqrt (arXiv:2405.18392) and would reach zero one step behind the last.
    """
    if step < run.n_warmup_steps:
        return (step + 1) / run.n_warmup_steps
    into_decay = step - run.decay_start
    return 1.0 if into_decay < 0 else 1.0 - ((into_decay + 1) / (run.n_steps - run.decay_start + 1)) ** 0.5
