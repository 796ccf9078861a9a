"""Seconds of every stage's chunks, alone and in overlapped pairs, from the work of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ablate.cluster.events import Group, Signature, signature
from ablate.cluster.hardware import Cluster
from ablate.cluster.inputs import Draws, Floats
from ablate.cluster.layout import Layout
from ablate.cluster.network import Network, dispatch_bytes
from ablate.cluster.rates import Rates, summed
from ablate.cluster.work import Model, Share, Work, embedding_work, total
from ablate.spec.cost import BF16_BYTES

ALL_TO_ALL = ("dispatch", "combine")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Seconds:
    """Of one part of a stage and one micro-batch, (S,). `compute` by pass: alone, and beside an all-to-all, which takes
    multiprocessors; `between`: the all-to-all's of one pass, alone, and beside products. `tensor_forward` and
    `tensor_input` are what of the passes is tensor parallelism's traffic.
    """

    forward: Floats
    input: Floats
    weight: Floats
    beside_forward: Floats
    beside_input: Floats
    beside_weight: Floats
    between: Floats
    beside_between: Floats
    tensor_forward: Floats
    tensor_input: Floats

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(**{n: getattr(self, n) + getattr(other, n) for n in self.__dataclass_fields__})

    def times(self, factor: Floats) -> Seconds:
        return Seconds(**{n: getattr(self, n) * factor for n in self.__dataclass_fields__})

    def where(self, first: NDArray[np.bool_], other: Seconds) -> Seconds:
        """This where `first` is true, else the other, draw by draw."""
        return Seconds(**{n: np.where(first, getattr(self, n), getattr(other, n)) for n in self.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True, slots=True)
class Pricing:
    """Seconds of work in a layout on a cluster."""

    cluster: Cluster
    draws: Draws
    layout: Layout
    rates: Rates
    share: Share

    def seconds(self, work: Work) -> Seconds:
        """Of one part."""
        like, recompute, rates = self.draws["network_efficiency"], self.layout.recompute, self.rates
        every = self.cluster.n_sms
        fewer = every - self.cluster.communication_sms
        tensor = Network(cluster=self.cluster, draws=self.draws).tensor_collectives(
            self.share.tokens, work_dim(work), self.share.tensor, work.collectives
        )
        again = 2.0 if recompute == "full" else 1.0
        alone, beside = self._all_to_all(work)
        passes = {}
        for prefix, sms in (("", every), ("beside_", fewer)):
            passes[f"{prefix}forward"] = summed(rates.forward(work, sms), like) + tensor
            passes[f"{prefix}input"] = summed(rates.input_gradient(work, sms, recompute), like) + again * tensor
            passes[f"{prefix}weight"] = summed(rates.weight_gradient(work, sms), like)
        found = Seconds(
            **passes, between=alone, beside_between=beside, tensor_forward=tensor, tensor_input=again * tensor
        )
        return found.times(self.draws["left_out"])

    def _all_to_all(self, work: Work) -> tuple[Floats, Floats]:
        """A dispatch and a combine of every routed layer in one pass; the backward pass has as many."""
        network = Network(cluster=self.cluster, draws=self.draws)
        alone = beside = np.zeros_like(self.draws["network_efficiency"])
        sizes = (dispatch_bytes(self.share.low_precision), float(BF16_BYTES))
        for routed in work.routed:
            for kind, size in zip(ALL_TO_ALL, sizes, strict=True):
                seconds = network.all_to_all(routed, self.layout.transport, self.layout.expert, size)
                slower = self.draws[self.rates.corrections.get(kind, "contention")]
                alone, beside = alone + seconds, beside + seconds * slower
        return alone, beside


def work_dim(work: Work) -> int:
    """The width of the residual stream that tensor ranks exchange: what a part's last product writes."""
    return work.products[-1].outer if work.products else 0


def split_layers(costs: Sequence[float], first: float, last: float, n_stages: int) -> list[int]:
    """Numbers of layers of each stage, in order, with the shortest longest stage; `first` and `last` come on top of the
    ends. ValueError for more stages than layers.
    """
    _enough(len(costs), n_stages)
    ends = [0.0, *np.cumsum(costs).tolist()]
    low, high = 0.0, (sum(costs) + first + last) * (1 + 1e-9)
    for _ in range(60):
        limit = (low + high) / 2
        if _fill(ends, first, last, n_stages, limit) is None:
            low = limit
        else:
            high = limit
    found = _fill(ends, first, last, n_stages, high)
    assert found is not None
    return found


def even_layers(n_layers: int, end: int, n_stages: int) -> list[int]:
    """Equal numbers of layers, where the model's end counts as `end` of them; the remainder in the first stages."""
    _enough(n_layers, n_stages)
    each, rest = divmod(n_layers + end, n_stages)
    counts = [each + (stage < rest) for stage in range(n_stages)]
    counts[-1] -= end
    while counts[-1] < 0:  # the end is longer than a stage
        counts[-1] += 1
        counts[counts.index(max(counts))] -= 1
    return counts


def _enough(n_layers: int, n_stages: int) -> None:
    if n_layers < n_stages - 1:
        raise ValueError(f"{n_stages} pipeline stages were asked of {n_layers} layers; use fewer pipeline ranks")


def _fill(ends: Sequence[float], first: float, last: float, n_stages: int, limit: float) -> list[int] | None:
    """Stages filled in order up to a limit; None if layers are left over. The last may be without any."""
    counts, at, n = [], 0, len(ends) - 1
    for stage in range(n_stages):
        used = (first if stage == 0 else 0.0) + (last if stage == n_stages - 1 else 0.0)
        take = 0
        while at + take < n and used + ends[at + take + 1] - ends[at] <= limit:
            take += 1
        counts.append(take)
        at += take
    return counts if at == n else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """What a stage holds: how many layers of each kind, and the ends of the model."""

    parts: tuple[tuple[int, int], ...]  # (part, how often)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stages:
    """A model cut into stages; `parts` are its different layers and its ends, each priced once."""

    parts: tuple[Work, ...]
    stages: tuple[Stage, ...]

    def work(self, stage: int) -> Work:
        return total([self.parts[part] for part, n in self.stages[stage].parts for _ in range(n)])


def cut(model: Model, share: Share, pricing: Pricing, n_stages: int) -> tuple[Stages, Stages]:
    """The model in stages by the shortest longest stage, and by equal numbers of layers."""
    kinds = list(dict.fromkeys(model.layers))
    parts = [model.layer(model.layers.index(kind), share) for kind in kinds]
    parts += [embedding_work(model.dim, model.vocab_size, share), model.end(share)]
    costs = [_whole(pricing.seconds(part)) for part in parts]
    layers = [kinds.index(kind) for kind in model.layers]
    balanced = split_layers([costs[kind] for kind in layers], costs[-2], costs[-1], n_stages)
    even = even_layers(len(layers), model.n_heads, n_stages)
    return _stages(parts, layers, balanced), _stages(parts, layers, even)


def _whole(seconds: Seconds) -> float:
    """Central seconds of a part alone, both passes."""
    return float((seconds.forward + seconds.input + seconds.weight + 2 * seconds.between)[0])


def _stages(parts: Sequence[Work], layers: Sequence[int], counts: Sequence[int]) -> Stages:
    stages, at = [], 0
    for stage, n in enumerate(counts):
        held = layers[at : at + n]
        found = [(kind, held.count(kind)) for kind in sorted(set(held))]
        found += [(len(parts) - 2, 1)] * (stage == 0) + [(len(parts) - 1, 1)] * (stage == len(counts) - 1)
        stages.append(Stage(parts=tuple(found)))
        at += n
    return Stages(parts=tuple(parts), stages=tuple(stages))


class Chunks:
    """Seconds of groups of actions, each computed once."""

    def __init__(self, pricing: Pricing, balanced: Stages, even: Stages) -> None:
        self._draws = pricing.draws
        prices = [pricing.seconds(part) for part in balanced.parts]
        first = pricing.draws["layer_split"] < 0.5
        self.stages = [
            _sum(prices, one).where(first, _sum(prices, other))
            for one, other in zip(balanced.stages, even.stages, strict=True)
        ]
        self._known: dict[Signature, Floats] = {}

    def seconds(self, group: Group) -> Floats:
        """Of one action alone, or of a forward and a backward that hide each other's transfers."""
        key = signature(group)
        if key not in self._known:
            self._known[key] = self._pair(group) if len(group) > 1 else self._alone(*key[0])
        return self._known[key]

    def exposed(self, key: Signature) -> Floats:
        """Seconds of a group in which nothing is computed: transfers that nothing hides."""
        tensor = np.zeros_like(self.stages[0].between)
        for kind, stage in key:
            if kind != "W":
                tensor = tensor + getattr(self.stages[stage], f"tensor_{'forward' if kind == 'F' else 'input'}")
        if len(key) == 1:
            kind, stage = key[0]
            return tensor if kind == "W" else tensor + self.stages[stage].between
        return tensor + self._known[key] - self._beside(key)

    def _alone(self, kind: str, stage: int) -> Floats:
        s = self.stages[stage]
        return {
            "F": s.forward + s.between,
            "I": s.input + s.between,
            "W": s.weight,
            "B": s.input + s.weight + s.between,
        }[kind]

    def _pair(self, group: Group) -> Floats:
        """The longer of products and all-to-all, and what of the other sticks out."""
        key = signature(group)
        compute = self._beside(key)
        between = self.stages[key[0][1]].beside_between + self.stages[key[1][1]].beside_between
        hidden = np.maximum(compute, between) / (1.0 - self._draws["exposed_share"])
        return np.asarray(np.where(between > 0, hidden, compute))

    def _beside(self, key: Signature) -> Floats:
        forward, backward = self.stages[key[0][1]], self.stages[key[1][1]]
        beside = forward.beside_forward + backward.beside_input + backward.beside_weight
        alone = forward.forward + backward.input + backward.weight
        return np.asarray(np.where(forward.between + backward.between > 0, beside, alone))


def _sum(prices: Sequence[Seconds], stage: Stage) -> Seconds:
    zero = np.zeros_like(prices[0].forward)
    found = Seconds(**dict.fromkeys(Seconds.__dataclass_fields__, zero))
    for part, n in stage.parts:
        for _ in range(n):
            found = found + prices[part]
    return found
