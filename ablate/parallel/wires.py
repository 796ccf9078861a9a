"""The channels of a rank of a pipeline: first in first out, a communicator each, so that none waits for another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch.distributed as dist
from torch import Tensor

from ablate.parallel.groups import new_group
from ablate.parallel.mesh import Mesh
from ablate.schedules.action import Action, Schedule
from ablate.schedules.check import Channel, channel

Empty = Callable[[int], Tensor]  # a tensor as what travels of a micro-batch


class Wires:
    """Sends do not wait. A receive is posted as soon as the one before it on its channel has come."""

    def __init__(self, schedule: Schedule, mesh: Mesh) -> None:
        """`schedule`: with transfers. Every rank of the world makes the channels of all pipelines, in one order."""
        self.schedule, self.ranks = schedule, mesh.pipeline_ranks
        self.place = mesh.pipeline_rank
        rows = enumerate(schedule.ranks)
        wanted = sorted({channel(schedule, rank, a) for rank, row in rows for a in row if not a.is_compute})
        self.groups: dict[Channel, Any] = {}
        for data_rank in range(mesh.ranks.data):
            for each in wanted:
                members = sorted(end * mesh.ranks.data + data_rank for end in each[:2])
                group = new_group(members)
                if data_rank == mesh.data_rank:
                    self.groups[each] = group
        self._sending: list[tuple[Any, Tensor]] = []
        self._posted: dict[Channel, tuple[Any, Tensor]] = {}
        self._coming: dict[Channel, list[int]] = {}

    def expect(self, actions: Iterable[Action], empty: Empty) -> None:
        """Post the first receive of each channel that a rank's actions read."""
        self._empty, self._coming = empty, {}
        for action in actions:
            if action.kind[0] == "R":
                self._coming.setdefault(channel(self.schedule, self.place, action), []).append(action.micro)
        for each in self._coming:
            self._post(each)

    def _post(self, where: Channel) -> None:
        if coming := self._coming[where]:
            tensor = self._empty(coming.pop(0))
            self._posted[where] = dist.irecv(tensor, self.ranks[where[0]], group=self.groups[where]), tensor

    def receive(self, action: Action) -> Tensor:
        """What the next message of a channel brought; waits for it."""
        where = channel(self.schedule, self.place, action)
        work, tensor = self._posted.pop(where)
        work.wait()
        self._post(where)
        return tensor

    def send(self, action: Action, tensor: Tensor) -> None:
        """Send, without waiting for the other end."""
        where, tensor = channel(self.schedule, self.place, action), tensor.contiguous()
        self._sending.append((dist.isend(tensor, self.ranks[where[1]], group=self.groups[where]), tensor))

    def finish(self) -> None:
        """Wait until everything has left."""
        for work, _ in self._sending:
            work.wait()
        self._sending.clear()
        assert not self._posted, "a message was expected and not read"
