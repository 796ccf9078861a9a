"""What a pair of chunks hides of its transfers, on one core with a network that is emulated by waiting.

    python benchmarks/overlap.py [--preset cpu] [--rates 25 100 400] [--latency 100] [--pairs 10] [--transport two-hop]

One process holds all experts of a preset's whole recipe and reaches them by the transport, whose rows go nowhere: a
transfer has come when its bytes would have at that many megabytes a second behind those before it on the same channel,
and the latency in microseconds after. A forward and a backward pass of the model are made one behind the other and as a
pair that takes turns (`ablate.model.turns`), by the executor of a pipeline, between another forward and another
backward pass that have nothing beside them. Prints the median seconds of such a step, and of them those spent waiting.
It says what the order of work can hide; a GPU's streams, whose transfers take memory bandwidth and processors from the
products, are not in it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ablate.components.alltoall.spec import Deduplicated, Flat, TwoHop
from ablate.components.variants import Variant
from ablate.files import to_json
from ablate.model.stage import Stage, stage_loss
from ablate.model.transformer import Transformer, initialise
from ablate.model.turns import Steps
from ablate.parallel.executor import Pipeline
from ablate.parallel.experts import divided
from ablate.parallel.mesh import Mesh
from ablate.parallel.transport.peers import alone
from ablate.presets import preset
from ablate.schedules.action import Action, Schedule
from ablate.spec.machine import this_machine
from ablate.spec.ranks import Ranks

TRANSPORTS: Mapping[str, Any] = {node.kind: node for node in (TwoHop(), Flat(), Deduplicated())}


@dataclass
class Network:
    """Seconds that were waited for it."""

    bytes_per_s: float
    latency_s: float
    waited_s: float = 0.0


@dataclass
class Slow:
    """A channel of the network, one transfer behind the other."""

    network: Network
    free_s: float = field(default=0.0)

    def start(self, rows: Tensor, sent: Sequence[int], received: Sequence[int], way: Any) -> Flight:
        self.free_s = max(self.free_s, time.perf_counter()) + rows.numel() / self.network.bytes_per_s
        return Flight(self.network, rows, self.free_s + self.network.latency_s)


@dataclass
class Flight:
    network: Network
    rows: Tensor
    due_s: float

    def wait(self) -> Tensor:
        left = self.due_s - time.perf_counter()
        if left > 0:
            time.sleep(left)
            self.network.waited_s += left
        return self.rows


def schedule(*, paired: bool) -> Schedule:
    """Two micro-batches through one stage: the forward pass of the second and the backward pass of the first."""
    actions = (Action("F", 0, 0), Action("F", 0, 1, paired=paired), Action("B", 0, 0), Action("B", 0, 1))
    return Schedule(name="pair" if paired else "apart", n_micro_batches=2, placement=((0,),), ranks=(actions,))


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    for rate in arguments.rates:
        network = Network(rate * 1e6, arguments.latency / 1e6)
        print(to_json(measure(arguments.preset, arguments.transport, network, arguments.pairs)), end="", flush=True)


def measure(name: str, transport: str, network: Network, n_pairs: int) -> Mapping[str, Any]:
    """Medians of a pair's seconds and of those waited for rows, apart and in turns."""
    small = preset(name)
    spec = (Variant.full(small) | {"distill": "raw"}).resolve(small)
    model: Any = Transformer(spec.model.for_machine(this_machine(), "float32"))
    initialise(model, spec.model.init, 0)
    n_experts: int = getattr(spec.model.feed_forward, "n_routed_experts")  # noqa: B009 - the whole recipe has experts
    channels: Any = {name: Slow(network) for name in ("everyone", "between", "inside")}
    peers = replace(alone(n_experts), **channels)
    divided(model, peers, TRANSPORTS[transport].build(peers, n_experts, spec.model.linear.wire()), n_experts)
    whole, length = Stage(range(spec.model.n_layers), True, True), spec.trainer.sequence_length
    shape = (spec.trainer.micro_batch_size, length + 1)
    windows = [torch.randint(spec.model.vocab_size, shape, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]

    def forward(stage: int, x: Tensor | None, micro: int) -> Steps[tuple[Tensor, Tensor | None]]:
        made = yield from stage_loss(model, whole, x, spec.data.text, {"window_BT1": windows[micro]}, decaying=False)
        return made.output, made.balance

    mesh = Mesh(Ranks(data=2, expert=2), 0, {})
    found: dict[str, list[tuple[float, float]]] = {"apart": [], "in turns": []}
    pipelines = {"apart": Pipeline(schedule(paired=False), mesh), "in turns": Pipeline(schedule(paired=True), mesh)}
    for _ in range(n_pairs + 1):
        for how, pipeline in pipelines.items():
            before, start = network.waited_s, time.perf_counter()
            pipeline.train(forward, lambda micro: torch.empty(0), 0.5)
            found[how].append((time.perf_counter() - start, network.waited_s - before))
    where = f"emulated by waiting, {network.bytes_per_s / 1e6:g} MB/s, {network.latency_s * 1e6:g} us"
    seconds = {
        f"{what}, {how}": round(median(row[i] for row in rows[1:]), 4)  # the first pair warms up
        for how, rows in found.items()
        for i, what in enumerate(("step_s", "waited_s"))
    }
    return {"preset": name, "transport": transport, "network": where, **seconds}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--transport", choices=TRANSPORTS, default="two-hop")
    parser.add_argument("--rates", type=float, nargs="+", default=[25, 100, 400], help="megabytes a second")
    parser.add_argument("--latency", type=float, default=100, help="microseconds")
    parser.add_argument("--pairs", type=int, default=10)
    return parser.parse_args()


if __name__ == "__main__":
    main()
