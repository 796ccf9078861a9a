"""What a run's ranks do and hold, before anything runs: its schedule and stages, and what cannot be. No torch."""

from __future__ import annotations

from ablate.schedules.action import Schedule
from ablate.schedules.tables import table
from ablate.spec.model import ModelSpec
from ablate.spec.run import TrainerSpec


def schedule_of(trainer: TrainerSpec) -> Schedule:
    """The table of an optimizer step; on one pipeline rank plain accumulation.

    ValueError where the micro-batches cannot be shared, or the schedule cannot be for these numbers.
    """
    ranks, n = trainer.ranks, trainer.n_micro_batches
    if n % ranks.data:
        least = ranks.data * (2 * ranks.pipeline if ranks.pipeline > 1 else 1)
        raise ValueError(
            f"{n} micro-batches of a step cannot be shared evenly by {ranks.data} data ranks; give other ranks, or a "
            f"batch (--batch-size) of a multiple of {least} sequences, which every schedule can share"
        )
    if trainer.pipeline is None:
        return table("1f1b", 1, n // ranks.data)
    return trainer.pipeline.schedule(ranks.pipeline, n // ranks.data)


def layers_of(model: ModelSpec, trainer: TrainerSpec) -> tuple[range, ...]:
    """The layers of each stage; ValueError if they cannot be laid out so."""
    if trainer.pipeline is None:
        return (range(model.n_layers),)
    return trainer.pipeline.layers(model.n_layers, schedule_of(trainer).n_stages)


def check_ranks(model: ModelSpec, trainer: TrainerSpec) -> None:
    """ValueError if a run cannot be computed on its ranks as one process would compute it."""
    trainer.check_states()
    if trainer.ranks.world == 1:
        return
    n_experts = getattr(model.feed_forward, "n_routed_experts", 0)
    if trainer.transport is not None and trainer.ranks.expert > n_experts:
        raise ValueError(
            f"the ranks are {trainer.ranks}, and {n_experts} routed experts do not give each of {trainer.ranks.expert} "
            f"expert ranks one; give expert={n_experts} or fewer"
        )
    if trainer.transport is not None and model.linear.shares_scales() == "tensor":
        raise ValueError(
            "fp8=tensorwise takes one scale of all experts and all their tokens, which expert ranks have in "
            "parts: numbers would depend on the ranks; choose blockwise, gradient-blocks or bf16, or leave expert out"
        )
    if trainer.ranks.pipeline > 1 and trainer.pipeline is None:
        raise ValueError("there are several pipeline ranks and no schedule; leave dualpipe to the recipe")
    layers_of(model, trainer)
    schedule_of(trainer)
    if getattr(model.balance, "over_step", False):
        raise ValueError(
            "aux-free=batch-aux balances each micro-batch by those before it in the step, and on several ranks there "
            "is no such order; choose sequence-aux or micro-batch-aux, or one process"
        )
