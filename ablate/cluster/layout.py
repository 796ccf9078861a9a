"""How a model lies on a cluster: ranks of each kind, micro-batches, schedule, transport, recomputation."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib import resources
from typing import Any, Literal

from ablate.cluster.hardware import Cluster
from ablate.cluster.network import Transport
from ablate.cluster.work import Model
from ablate.errors import nearest
from ablate.schedules.tables import NAMES as SCHEDULES
from ablate.spec.decoding import decode
from ablate.spec.ranges import Count, checked

FOLDER = "layouts"
Recompute = Literal["none", "selective", "full"]
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")
# Components of the machinery: name -> what on is, and what off may be, the default first.
SYSTEM: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "dualpipe": ("dualpipe", ("1f1b", "zb1p", "zbv", "dualpipev", "gpipe", "interleaved")),
    "alltoall": ("two-hop", ("flat", "deduplicated")),
}


@checked("layout")
@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Ranks: `pipeline` x `tensor` x data; `expert` ranks are taken of the data and tensor ranks of a stage.

    micro_batch: sequences of a micro-batch. interleave: stages a rank of the schedule `interleaved`. moment_bytes: of
    one of AdamW's two moments. source: who published it; empty for one of the user's.
    """

    pipeline: Count = 1
    tensor: Count = 1
    expert: Count = 1
    micro_batch: Count = 1
    schedule: str = "1f1b"
    transport: Transport = "two-hop"
    recompute: Recompute = "selective"
    interleave: Count = 2
    moment_bytes: Literal[2, 4] = 4
    source: str = ""

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {self.schedule!r}; {nearest(self.schedule, SCHEDULES)}")

    def data(self, cluster: Cluster) -> int:
        """Data ranks on a cluster; ValueError where the others do not divide it."""
        ranks = self.pipeline * self.tensor
        if cluster.n_gpus % ranks:
            raise ValueError(
                f"{self.pipeline} pipeline ranks x {self.tensor} tensor ranks do not divide {cluster.n_gpus} GPUs; "
                "choose divisors, or let --search find a layout"
            )
        return cluster.n_gpus // ranks

    def n_micro_batches(self, cluster: Cluster, batch: int) -> int:
        """Micro-batches of a data rank in a step of `batch` sequences; ValueError where it does not divide."""
        data = self.data(cluster)
        if batch % (data * self.micro_batch):
            raise ValueError(
                f"a batch of {batch} sequences does not divide among {data} data ranks with {self.micro_batch} a "
                "micro-batch; give another --batch, --pipeline, --tensor or --micro-batch, or let --search find one"
            )
        return batch // (data * self.micro_batch)

    def check(self, cluster: Cluster, model: Model) -> None:
        """ValueError where the model cannot lie so."""
        group = self.data(cluster) * self.tensor
        if self.tensor > cluster.gpus_per_node:
            raise ValueError(f"{self.tensor} tensor ranks do not fit a node of {cluster.gpus_per_node} GPUs; use fewer")
        if self.expert > 1 and not model.n_routed_experts:
            raise ValueError(f"{self.expert} expert ranks were given, and the model routes to no experts; leave 1")
        if group % self.expert or (model.n_routed_experts and model.n_routed_experts % self.expert):
            raise ValueError(
                f"{self.expert} expert ranks must divide the {group} ranks of a stage and the "
                f"{model.n_routed_experts} routed experts; choose a divisor of both"
            )

    def with_levels(self, levels: Mapping[str, str]) -> Layout:
        """With the machinery's components at these levels; ValueError for one that has no such level."""
        changed: dict[str, Any] = {}
        for name, level in levels.items():
            on, off = SYSTEM[name]
            if level != "on" and level not in off:
                raise ValueError(f"{name} has no alternative {level!r}; it has {', '.join(off)}")
            changed["schedule" if name == "dualpipe" else "transport"] = on if level == "on" else level
        return replace(self, **changed)

    def levels(self) -> dict[str, str]:
        """What the machinery's components are at here."""
        return {
            name: "on" if value == SYSTEM[name][0] else value
            for name, value in (("dualpipe", self.schedule), ("alltoall", self.transport))
        }

    def facts(self, cluster: Cluster, batch: int) -> dict[str, Any]:
        """Its numbers, for a document."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return own | {"data": self.data(cluster), "n_micro_batches": self.n_micro_batches(cluster, batch)}


def published_layout(preset: str) -> Layout | None:
    """The layout that a preset was trained in, where its authors say."""
    file = resources.files(__package__) / FOLDER / f"{preset}.toml"
    return decode(Layout, tomllib.loads(file.read_text(encoding="utf-8")), preset) if file.is_file() else None
