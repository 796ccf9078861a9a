"""How a run is divided over processes: pipeline, data and expert ranks, and which of the last share a node."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from ablate.errors import nearest
from ablate.spec.ranges import Count, checked


@checked("trainer.ranks")
@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Ranks along each axis; a rank is a process with a device of its own.

    Expert ranks lie inside data ranks, as in DeepSeek-V3 (arXiv:2412.19437, section 3.1): the `data` ranks are groups
    of `expert` neighbours, each rank holds a share of every layer's routed experts and all else, and has micro-batches
    of its own. So there are pipeline x data processes. `node` neighbouring expert ranks share a node.
    """

    pipeline: Count = 1
    data: Count = 1
    expert: Count = 1
    node: Count = 8

    def __post_init__(self) -> None:
        if self.data % self.expert:
            raise ValueError(
                f"trainer.ranks.expert is {self.expert}; expert ranks lie inside data ranks, so that it must divide "
                f"data, which is {self.data}"
            )
        if self.expert > self.node and self.expert % self.node:
            raise ValueError(
                f"trainer.ranks.node is {self.node}; the ranks of a node must divide expert, which is {self.expert}"
            )

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.pipeline * self.data

    @property
    def n_nodes(self) -> int:
        """Nodes that the experts of a layer are spread over."""
        return max(1, self.expert // self.node)

    @property
    def per_node(self) -> int:
        """Expert ranks of one node."""
        return self.expert // self.n_nodes

    def share(self, n: int) -> tuple[range, ...]:
        """Which of n experts each expert rank holds: neighbours, equally many up to one."""
        ends = [n * (rank + 1) // self.expert for rank in range(self.expert)]
        return tuple(range(start, end) for start, end in zip([0, *ends], ends, strict=False))

    def on_several(self, axis: str) -> bool:
        """Whether there is more than one rank along an axis."""
        return bool(getattr(self, axis) > 1)

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in asdict(self).items())


def read_ranks(given: str) -> Ranks:
    """Ranks from text such as "data=2,expert=2"; expert ranks alone make as many data ranks.

    ValueError says what is wrong in the text.
    """
    sizes: dict[str, int] = {}
    for item in given.split(","):
        name, equals, value = (part.strip() for part in item.partition("="))
        known = [f.name for f in fields(Ranks)]
        if not equals or not value.isdecimal():
            raise ValueError(f"--ranks is {given!r}; it takes sizes of {', '.join(known)}, for example data=2,expert=2")
        if name not in known:
            raise ValueError(f"--ranks names {name!r}; {nearest(name, known)}")
        sizes[name] = int(value)
    return Ranks(**{"data": sizes.get("expert", 1), **sizes})
