"""A cluster as numbers: devices, links, memory; from the shipped files or one of the user's."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ablate.documents import read_toml
from ablate.errors import nearest
from ablate.spec.decoding import decode
from ablate.spec.ranges import Count, CountOrNone, NotNegative, Positive, checked

FOLDER = "clusters"


@checked("cluster")
@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Equal nodes of equal devices. Rates are a device's: `nvlink_bytes_per_s` to the others of its node and
    `network_bytes_per_s` beyond it, each in one direction; FLOP/s are dense peaks, and 0 for FP8 where there is none.
    `communication_sms` of `n_sms` multiprocessors are busy with the all-to-all while it runs beside products.
    """

    title: str
    device: str
    n_gpus: Count
    gpus_per_node: Count
    bf16_flops_per_s: Positive
    fp8_flops_per_s: NotNegative
    memory_bytes: Count
    memory_bytes_per_s: Positive
    n_sms: Count
    communication_sms: CountOrNone
    nvlink_bytes_per_s: Positive
    network_bytes_per_s: Positive
    profile: str = ""  # a measured chunk whose rates are taken, where it is of such devices

    def __post_init__(self) -> None:
        if self.n_gpus > self.gpus_per_node and self.n_gpus % self.gpus_per_node:
            raise ValueError(
                f"cluster.n_gpus is {self.n_gpus}; it must be a whole number of nodes of {self.gpus_per_node} "
                "(cluster.gpus_per_node)"
            )
        if self.communication_sms >= self.n_sms:
            raise ValueError(
                f"cluster.communication_sms is {self.communication_sms}; it must be below cluster.n_sms, {self.n_sms}"
            )

    def n_nodes(self, n_ranks: int) -> int:
        """Nodes that so many neighbouring ranks lie on."""
        return -(-n_ranks // min(self.gpus_per_node, self.n_gpus))

    def facts(self) -> dict[str, Any]:
        """Its numbers, for a document."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def cluster_names() -> tuple[str, ...]:
    """The shipped clusters, sorted."""
    folder = resources.files(__package__) / FOLDER
    return tuple(sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml")))


def cluster(name: str) -> Cluster:
    """A shipped cluster, or one from a TOML file; ValueError names the nearest, or what is wrong with the file."""
    if name in cluster_names():
        text = (resources.files(__package__) / FOLDER / f"{name}.toml").read_text(encoding="utf-8")
        return decode(Cluster, tomllib.loads(text), "")
    if not name.endswith(".toml"):
        raise ValueError(
            f"unknown cluster {name!r}; {nearest(name, cluster_names())} A cluster of your own is a TOML file: "
            "give its path, which ends in .toml"
        )
    return decode(Cluster, read_toml(Path(name), "the cluster", "give a TOML file with the fields of a cluster"), name)
