"""The fastest layout of a model on a cluster that its memory allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ablate.cluster.hardware import Cluster
from ablate.cluster.layout import RECOMPUTE, Layout
from ablate.cluster.simulate import Question, Simulation, simulate
from ablate.cluster.work import Model

MICRO_BATCHES = (1, 2, 4)
MAX_PIPELINE = 32
LONGEST = 3  # rounds of micro-batches that are executed; a longer step repeats the last of them
FINALISTS = 3  # layouts that are executed whole


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A layout with its estimated step, in seconds, and the bytes of its fullest rank, reserve included."""

    layout: Layout
    step_s: float
    memory_bytes: float


def search(question: Question) -> tuple[Simulation, list[Candidate], int]:
    """The best layout simulated, the best few with their figures, and how many were tried.

    Ranks of each kind, the micro-batch and recomputation vary; schedule and transport stay the question's.
    ValueError where none fits the memory.
    """
    tried, fitting = 0, list[Candidate]()
    least: tuple[float, Layout] | None = None
    for layout in layouts(question.layout, question.cluster, question.model, question.batch):
        candidate = estimate(replace(question, layout=layout))
        if candidate is None:
            continue
        tried += 1
        if candidate.memory_bytes <= question.cluster.memory_bytes:
            fitting.append(candidate)
        if least is None or candidate.memory_bytes < least[0]:
            least = candidate.memory_bytes, layout
    if not fitting:
        lacking = f"; the least is {least[0] / 2**30:.0f} GiB a rank" if least else ""
        raise ValueError(
            f"none of {tried} layouts fits {question.cluster.memory_bytes / 2**30:.0f} GiB a GPU{lacking}; "
            "give more GPUs, another --batch or another schedule"
        )
    fitting.sort(key=lambda candidate: candidate.step_s)
    finals = [simulate(replace(question, layout=c.layout), 0) for c in fitting[:FINALISTS]]
    best = min((f for f in finals if f.fits), key=lambda f: f.value("step_s"), default=finals[0])
    return simulate(best.question), fitting[:5], tried


def estimate(question: Question) -> Candidate | None:
    """A layout by its central values: a long step from two short ones, whose difference is a round of micro-batches.

    None where the layout is impossible for this model, batch or schedule.
    """
    layout, cluster = question.layout, question.cluster
    data = layout.data(cluster)
    n = layout.n_micro_batches(cluster, question.batch)
    around = 2 * layout.pipeline * (layout.interleave if layout.schedule == "interleaved" else 1)
    short = (LONGEST - 1) * around, LONGEST * around
    try:
        if n <= short[1]:
            found = simulate(question, 0)
            return Candidate(layout=layout, step_s=found.value("step_s"), memory_bytes=_bytes(found))
        few, more = (simulate(replace(question, batch=m * data * layout.micro_batch), 0) for m in short)
    except ValueError:
        return None
    slope = (more.value("step_s") - few.value("step_s")) / around
    return Candidate(layout=layout, step_s=more.value("step_s") + (n - short[1]) * slope, memory_bytes=_bytes(more))


def _bytes(found: Simulation) -> float:
    return found.value("memory_bytes_per_rank")


def layouts(base: Layout, cluster: Cluster, model: Model, batch: int) -> Iterator[Layout]:
    """Layouts that divide the cluster, the batch and the experts."""
    for pipeline in _powers(min(MAX_PIPELINE, cluster.n_gpus, len(model.layers))):
        for tensor in _powers(cluster.gpus_per_node):
            if cluster.n_gpus % (pipeline * tensor):
                continue
            group = cluster.n_gpus // pipeline
            experts = [n for n in _powers(group) if model.n_routed_experts % n == 0] if model.n_routed_experts else [1]
            for micro_batch in MICRO_BATCHES:
                if batch % (group // tensor * micro_batch):
                    continue
                for expert in _worth_trying(experts):
                    for recompute in RECOMPUTE:
                        yield replace(
                            base, pipeline=pipeline, tensor=tensor, expert=expert, micro_batch=micro_batch,
                            recompute=recompute, source="",
                        )  # fmt: skip


def _worth_trying(experts: Sequence[int]) -> Sequence[int]:
    """The larger half: fewer expert ranks hold more experts each."""
    return experts[len(experts) // 2 :]


def _powers(most: int) -> list[int]:
    return [2**k for k in range(most.bit_length()) if 2**k <= most]
