"""One training step on a cluster: its seconds, what they are made of, and the memory it needs, with ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ablate.cluster.chunks import Chunks, Pricing, Stages, cut
from ablate.cluster.events import BACKWARD, FORWARD, OVERLAPPED, WEIGHT, Execution, execute
from ablate.cluster.hardware import Cluster
from ablate.cluster.inputs import N_SAMPLES, Draws, Floats, Input, draw
from ablate.cluster.layout import Layout
from ablate.cluster.memory import RankMemory, rank_memory
from ablate.cluster.network import Network
from ablate.cluster.rates import Rates
from ablate.cluster.work import Model, Share
from ablate.schedules.action import Schedule
from ablate.schedules.tables import table
from ablate.spec.cost import BF16_BYTES, FP32_BYTES, ModelCost

SECONDS_A_DAY, SECONDS_AN_HOUR, TRILLION = 86_400, 3_600, 1e12
METRICS = (
    "step_s",
    "tokens_per_day",
    "gpu_hours_per_trillion_tokens",
    "mfu_causal",
    "mfu_noncausal",
    "bubble_s",
    "forward_s",
    "backward_s",
    "weight_s",
    "overlapped_s",
    "optimizer_s",
    "exposed_communication_s",
    "memory_bytes_per_rank",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is simulated: a model of a known price in a layout on a cluster, `batch` sequences a step.

    `corrections`: class of work -> the input that corrects its rate.
    """

    cluster: Cluster
    model: Model
    cost: ModelCost
    layout: Layout
    batch: int
    inputs: Mapping[str, Input] = field(repr=False)
    corrections: Mapping[str, str] = field(default_factory=dict)

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.cost.sequence_length


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Simulation:
    """The answer: every metric for all draws; memory by rank; the layers of each stage."""

    question: Question
    draws: Draws
    metrics: Mapping[str, Floats]
    memory: tuple[RankMemory, ...]
    stages: Stages
    execution: Execution

    def value(self, metric: str) -> float:
        return self.draws.central(self.metrics[metric])

    def range(self, metric: str) -> tuple[float, float]:
        return self.draws.range(self.metrics[metric])

    @property
    def fits(self) -> bool:
        """Whether the fullest rank has the memory, by the central values."""
        return self.value("memory_bytes_per_rank") <= self.question.cluster.memory_bytes


def simulate(question: Question, n_samples: int = N_SAMPLES) -> Simulation:
    """One step under every draw. ValueError where the layout is impossible or the device lacks what the model asks."""
    cluster, layout, model = question.cluster, question.layout, question.model
    layout.check(cluster, model)
    if model.low_precision and not cluster.fp8_flops_per_s:
        raise ValueError(f"{cluster.device} has no FP8 products (fp8_flops_per_s is 0); add --disable fp8")
    draws = draw(question.inputs, n_samples)
    schedule = table(
        layout.schedule, layout.pipeline, layout.n_micro_batches(cluster, question.batch), n_chunks=layout.interleave
    )
    share = Share(
        tokens=layout.micro_batch * question.cost.sequence_length, sequence_length=question.cost.sequence_length,
        tensor=layout.tensor, expert=layout.expert, low_precision=model.low_precision,
    )  # fmt: skip
    rates = Rates(cluster=cluster, draws=draws, low_precision=model.low_precision, corrections=question.corrections)
    pricing = Pricing(cluster=cluster, draws=draws, layout=layout, rates=rates, share=share)
    balanced, even = cut(model, share, pricing, schedule.n_stages)
    chunks = Chunks(pricing, balanced, even)
    run = execute(schedule, chunks.seconds, _transfer(pricing, model))
    memory = rank_memory(schedule, balanced, cluster, layout, share)
    update, exposed = _optimizer(question, schedule, balanced, pricing)
    return Simulation(
        question=question, draws=draws, memory=memory, stages=balanced, execution=run,
        metrics=_metrics(question, draws, run, chunks, memory, update, exposed),
    )  # fmt: skip


def _transfer(pricing: Pricing, model: Model) -> Floats:
    """Seconds of an activation between pipeline ranks, which lie on different nodes where a stage fills one."""
    cluster, layout = pricing.cluster, pricing.layout
    crosses = cluster.n_gpus > cluster.gpus_per_node and cluster.n_gpus // layout.pipeline >= cluster.gpus_per_node
    network = Network(cluster=cluster, draws=pricing.draws)
    return network.transfer(pricing.share.own_tokens * model.dim * BF16_BYTES, crosses)


def _optimizer(question: Question, schedule: Schedule, stages: Stages, pricing: Pricing) -> tuple[Floats, Floats]:
    """Seconds behind the pipeline, and what of them is traffic: ZeRO-1's update on the rank that holds most."""
    cluster, layout = question.cluster, question.layout
    network = Network(cluster=cluster, draws=pricing.draws)
    data, copies = layout.data(cluster), schedule.n_directions
    expert_copies = max(1, data * layout.tensor // layout.expert) * copies
    shared_copies = data * copies
    seen = 1.0 - pricing.draws["gradient_overlap"]
    touched = 2 * FP32_BYTES + 4 * layout.moment_bytes + FP32_BYTES + BF16_BYTES  # read and written of a parameter
    longest = traffic_of_longest = np.zeros_like(seen)
    for rank in range(schedule.n_ranks):
        held = [stages.work(stage) for stage in schedule.stages_of(rank)]
        shared = sum(work.shared_parameters for work in held)
        experts = sum(work.expert_parameters for work in held)
        across = cluster.n_gpus > cluster.gpus_per_node
        traffic = seen * (
            network.sharded_update(shared, shared_copies, across)
            + network.sharded_update(experts, expert_copies, across)
        )
        update = pricing.rates.seconds_of_bytes(touched * (shared / shared_copies + experts / expert_copies))
        longer = traffic + update > longest
        longest = np.where(longer, traffic + update, longest)
        traffic_of_longest = np.where(longer, traffic, traffic_of_longest)
    return longest, traffic_of_longest


def _metrics(
    question: Question, draws: Draws, run: Execution, chunks: Chunks, memory: tuple[RankMemory, ...],
    update: Floats, exposed_update: Floats,
) -> dict[str, Floats]:  # fmt: skip
    """Seconds of a kind of work are a rank's on average, so that they and the bubble add up to the step."""
    step = run.makespan + update
    exposed = [sum(n * chunks.exposed(key) for key, n in groups.items()) + exposed_update for groups in run.groups]
    rate = question.tokens_per_step / step
    causal, noncausal = model_flops(question.cost)
    peak = question.cluster.n_gpus * question.cluster.bf16_flops_per_s
    reserve = 1.0 + draws["activation_reserve"]
    found = {
        "step_s": step,
        "tokens_per_day": SECONDS_A_DAY * rate,
        "gpu_hours_per_trillion_tokens": TRILLION / rate * question.cluster.n_gpus / SECONDS_AN_HOUR,
        "mfu_causal": rate * causal / peak,
        "mfu_noncausal": rate * noncausal / peak,
        "bubble_s": run.bubble,
        "forward_s": run.mean(FORWARD),
        "backward_s": run.mean(BACKWARD),
        "weight_s": run.mean(WEIGHT),
        "overlapped_s": run.mean(OVERLAPPED),
        "optimizer_s": update,
        "exposed_communication_s": np.asarray(sum(exposed) / len(exposed)),
        "memory_bytes_per_rank": max(rank.total for rank in memory) * reserve,
    }
    return {name: found[name] for name in METRICS}


def model_flops(cost: ModelCost) -> tuple[float, float]:
    """Training FLOPs of one token, causal and with attention counted in full: of the main model alone, without its
    embedding and its router, as DeepSeek counts (arXiv:2505.09343, table 4).
    """
    length = cost.sequence_length
    causal = 3.0 * cost.main.forward_flops
    return causal, causal + 3.0 * cost.main.attention_flops * (2 * length / (length + 1) - 1)
