"""Bytes on every rank: weights, gradients, AdamW's shards, and what the live micro-batches keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ablate.cluster.chunks import Stages
from ablate.cluster.hardware import Cluster
from ablate.cluster.layout import Layout
from ablate.cluster.work import Share, Work
from ablate.schedules.action import ENDS_A_CHUNK, Schedule
from ablate.spec.cost import BF16_BYTES, FP32_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class RankMemory:
    """Bytes of one rank at its peak, without the reserve that is kept for what is not counted."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


def rank_memory(
    schedule: Schedule, stages: Stages, cluster: Cluster, layout: Layout, share: Share
) -> tuple[RankMemory, ...]:
    """Of every pipeline rank: BF16 weights and float32 gradients of all its stages; float32 master weights and two
    moments, sharded (ZeRO-1) over the ranks that hold the same; activations of the chunks that are alive at once.
    """
    works = [stages.work(stage) for stage in range(schedule.n_stages)]
    kept = [kept_bytes(work, layout, share) for work in works]
    copies, data = schedule.n_directions, layout.data(cluster)
    expert_copies = max(1, data * layout.tensor // layout.expert)
    found = []
    for rank in range(schedule.n_ranks):
        held = [works[stage] for stage in schedule.stages_of(rank)]
        shared = sum(work.shared_parameters for work in held)
        experts = sum(work.expert_parameters for work in held)
        state = FP32_BYTES + 2 * layout.moment_bytes
        found.append(
            RankMemory(
                weights=BF16_BYTES * (shared + experts),
                gradients=FP32_BYTES * (shared + experts),
                optimizer=state * (shared / (copies * data) + experts / (copies * expert_copies)),
                activations=_peak(schedule, rank, kept) + max(_working(work, share) for work in held),
            )
        )
    return tuple(found)


def kept_bytes(work: Work, layout: Layout, share: Share) -> float:
    """What one micro-batch keeps of a stage between its forward and its backward pass."""
    if layout.recompute == "full":
        width = max((p.outer for p in work.products[-1:]), default=0) if work.n_blocks else 0
        return work.n_blocks * share.own_tokens * width * BF16_BYTES
    spared = 0.0 if layout.recompute == "selective" else work.recomputable_bytes
    return work.kept_bytes + spared


def _working(work: Work, share: Share) -> float:
    """What the backward pass of one block has at once beside it."""
    return (work.kept_bytes + work.recomputable_bytes) / max(1, work.n_blocks)


def _peak(schedule: Schedule, rank: int, kept: Sequence[float]) -> float:
    live = peak = 0.0
    for action in schedule.ranks[rank]:
        if action.kind == "F":
            live += kept[action.stage]
            peak = max(peak, live)
        elif action.kind in ENDS_A_CHUNK:
            live -= kept[action.stage]
    return peak
