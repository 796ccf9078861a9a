"""The transports at run time: a token's row and choices go out in one or two hops, and one sum a copy comes back.

Autograd sees two pairs of functions, `_Leave`/`_Enter` around the way out and `_Return`/`_Close` around the way back.
The first of each pair starts a transfer and the second waits for it, in both directions, so that what is computed
between them (the shared expert) runs meanwhile, and so does a pass beside this one (`model.turns`): forward `receive`
is left at every hop, backward every wait gives way. What travels is held by the `Journey`; the tensors that autograd
hands from the first to the second are placeholders without storage. In a block that is computed again no transfer is:
rows that arrived are kept as they travelled (`once`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ablate.model.recompute import once
from ablate.model.turns import Steps, give_way

ExpertRows = Callable[[Tensor, Tensor], Tensor]  # rows (P, D) sorted by own expert, ends of the experts' -> (P, D)


class Wire(Protocol):
    """How rows become bytes, as the linear node has it."""

    def row_bytes(self, dim: int) -> int: ...
    def encode(self, x_ND: Tensor) -> Tensor: ...
    def decode(self, bytes_NX: Tensor, dim: int, dtype: torch.dtype) -> Tensor: ...


class Channel(Protocol):
    """All-to-all of rows in one group of ranks."""

    def start(self, rows: Tensor, sent: Sequence[int], received: Sequence[int], way: Literal["D", "C"]) -> Any:
        """Rows by peer, sent[p] to peer p; a handle whose `wait()` gives those received, by peer.

        way: to the experts (dispatch) or home from them (combine).
        """


class Peers(Protocol):
    """The ranks that a layer's experts are divided over: nodes of equally many, numbered node by node."""

    n_nodes: int
    per_node: int
    rank: int
    between: Channel  # ranks of the same place in all nodes
    inside: Channel  # ranks of the same node
    everyone: Channel
    shares: Sequence[range]  # each rank's experts

    def gather(self, counts: Tensor) -> tuple[Tensor, list[list[int]]]:
        """Every rank's counts (R, n), on the device and, after a wait of the host, as numbers."""


@dataclass(frozen=True, slots=True)
class Hop:
    """Copies of rows to peers. `row_S`: the row of every copy, by peer; `copies_XK`: a row's copies, S where none."""

    channel: Channel
    sent: list[int]
    received: list[int]
    row_S: Tensor
    copies_XK: Tensor

    def out(self, rows: Tensor) -> Any:
        return self.channel.start(rows[self.row_S], self.sent, self.received, "D")

    def back(self, rows: Tensor) -> Any:
        return self.channel.start(rows, self.received, self.sent, "C")

    def join(self, y_S: Tensor) -> Tensor:
        return summed(y_S, self.copies_XK)


def summed(y_S: Tensor, copies_XK: Tensor) -> Tensor:
    """sum over k of y[copies[x, k]], an index beyond the last meaning nothing: gathered, so in a fixed order."""
    padded = torch.cat([y_S, y_S.new_zeros(1, *y_S.shape[1:])])
    return padded[copies_XK].sum(1, dtype=y_S.dtype)


def hop(channel: Channel, goes_XP: Tensor, sent: list[int], received: list[int], most: int) -> Hop:
    """The hop of rows to the peers that are marked; no row has more than `most` copies.

    Sizes are known, so that the device is not waited for.
    """
    n_rows, n_peers = goes_XP.shape
    row_S = torch.nonzero_static(goes_XP.T, size=sum(sent))[:, 1]
    place_XP = (goes_XP.T.flatten().cumsum(0) - 1).view(n_peers, n_rows).T.masked_fill(~goes_XP, sum(sent))
    if most < n_peers:  # the marked first, in order
        first_XK = goes_XP.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :most]
        place_XP = place_XP.gather(1, first_XK)
    return Hop(channel, sent, received, row_S, place_XP)


class _Take(torch.autograd.Function):
    """rows[index_P]; the gradient is summed by place, in a fixed order on every device."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index_P: Tensor, places_XK: Tensor) -> Tensor:
        ctx.save_for_backward(places_XK)
        return rows[index_P]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return summed(gradients[0], ctx.saved_tensors[0]), None, None


class _Sum(torch.autograd.Function):
    """`summed`, the other way round."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index_P: Tensor, places_XK: Tensor) -> Tensor:
        ctx.save_for_backward(index_P)
        return summed(rows, places_XK)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.saved_tensors[0]], None, None


@dataclass(slots=True)
class Journey:
    """One layer's rows of one micro-batch on their way: the hops, and what is in flight."""

    wire: Wire | None
    dim: int
    dtype: torch.dtype
    hops: list[Hop]
    n_arrived: int
    onward: Callable[[Tensor], Hop] | None = None  # the last hop, from the rows that the first brought
    order_U: Tensor | None = None  # brings what arrived into the order of its source ranks; None: it has it
    undo_U: Tensor | None = None
    flight: Any = None
    at: int = 0  # the hop that is under way
    forms: Sequence[tuple[int, torch.dtype]] = ()  # width and type of each tensor on the way back

    def encode(self, x: Tensor) -> Tensor:
        return as_bytes(x) if self.wire is None else self.wire.encode(x)

    def decode(self, rows: Tensor) -> Tensor:
        if self.wire is None:
            return from_bytes(rows, self.dim, self.dtype)
        return self.wire.decode(rows, self.dim, self.dtype)

    def row_bytes(self) -> int:
        return self.dim * self.dtype.itemsize if self.wire is None else self.wire.row_bytes(self.dim)

    def set_out(self, rows: Tensor) -> None:
        """Start the first hop of bytes that go to the experts' ranks."""
        self.flight, self.at = self.hops[0].out(rows), 0

    def pass_on(self) -> bool:
        """Wait for a hop and start the next with the bytes that it brought; False where none is left to start."""
        if self.flight is None or (self.onward is None and self.at == len(self.hops) - 1):
            return False
        rows = self._landed()
        if self.onward is not None:
            self.hops.append(self.onward(rows))
            self.onward = None
        self.at += 1
        self.flight = self.hops[self.at].out(rows)
        return True

    def arrive(self) -> Tensor:
        """The bytes at the experts' ranks, after the last hop."""
        while self.pass_on():
            pass
        rows = self._landed()
        return rows if self.order_U is None else rows[self.order_U]

    def set_back(self, *rows: Tensor) -> None:
        """Start the last hop on the way back."""
        self.forms = [(t.shape[1], t.dtype) for t in rows]
        self.at = len(self.hops) - 1
        self.flight = self.hops[self.at].back(
            self._packed([t if self.undo_U is None else t[self.undo_U] for t in rows])
        )

    def pass_back(self) -> bool:
        """Wait for a hop, sum a row's copies where they parted and start the hop before; False where none is left."""
        if self.flight is None or self.at == 0:
            return False
        joined = self._joined()
        self.at -= 1
        self.flight = self.hops[self.at].back(self._packed(joined))
        return True

    def close(self) -> list[Tensor]:
        """What came home, summed over the copies of every row."""
        while self.pass_back():
            pass
        return self._joined()

    def _landed(self) -> Tensor:
        """What is under way, once it has come; until then the pass beside this one goes on."""
        give_way()
        rows: Tensor = self.flight.wait()
        self.flight = None
        return rows

    def _joined(self) -> list[Tensor]:
        parts = self._landed().split([width * dtype.itemsize for width, dtype in self.forms], dim=1)
        rows = [from_bytes(p, width, dtype) for p, (width, dtype) in zip(parts, self.forms, strict=True)]
        return [self.hops[self.at].join(t) for t in rows]

    @staticmethod
    def _packed(rows: Sequence[Tensor]) -> Tensor:
        return torch.cat([as_bytes(t) for t in rows], dim=1)


def as_bytes(x_NX: Tensor) -> Tensor:
    return x_NX.contiguous().view(torch.uint8)


def from_bytes(rows: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    rows = rows.contiguous()
    if len(rows) < 2:  # then torch calls any strides contiguous, and a part of a row keeps those of the whole
        rows = rows.clone(memory_format=torch.contiguous_format)
    return rows.view(dtype).view(len(rows), width)


def _placeholder(like: Tensor, *shape: int) -> Tensor:
    return like.new_zeros(()).expand(shape)


Numbers = list[list[int]]
Route = tuple[list[Hop], int, Callable[[Tensor], Hop] | None]


class _Leave(torch.autograd.Function):
    """Rows and weights set out, with the choices; backward their gradients come home."""

    @staticmethod
    def forward(ctx: Any, journey: Journey, x: Tensor, weight: Tensor, expert: Tensor) -> tuple[Tensor, Tensor]:
        ctx.journey = journey
        meta = [as_bytes(weight), as_bytes(expert.to(torch.int32))]
        once(lambda: journey.set_out(torch.cat([journey.encode(x), *meta], dim=1)))
        n = journey.n_arrived
        return _placeholder(x, n, x.shape[1]), _placeholder(weight, n, weight.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor, None]:
        x_gradient, weight_gradient = ctx.journey.close()
        return None, x_gradient, weight_gradient, None


class _Enter(torch.autograd.Function):
    """They have arrived: rows, weights, choices; backward their gradients set out for home."""

    @staticmethod
    def forward(ctx: Any, journey: Journey, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.journey = journey
        n_choices, row = weight.shape[1], journey.row_bytes()
        parts = once(journey.arrive).split([row, n_choices * weight.element_size(), n_choices * 4], dim=1)
        expert = from_bytes(parts[2], n_choices, torch.int32)
        ctx.mark_non_differentiable(expert)
        return journey.decode(parts[0]), from_bytes(parts[1], n_choices, weight.dtype), expert

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor]:
        x_gradient, weight_gradient, _ = gradients
        ctx.journey.set_back(x_gradient, weight_gradient)
        while ctx.journey.pass_back():  # the long hop between nodes is under way while the shared experts go back
            pass
        return None, _placeholder(x_gradient, *x_gradient.shape), _placeholder(weight_gradient, *weight_gradient.shape)


class _Return(torch.autograd.Function):
    """Sums of the experts' outputs set out for home; backward the gradient arrives, as rows did."""

    @staticmethod
    def forward(ctx: Any, journey: Journey, y: Tensor, n_home: int) -> Tensor:
        ctx.journey = journey
        once(lambda: journey.set_back(y))
        return _placeholder(y, n_home, y.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        return None, ctx.journey.decode(ctx.journey.arrive()), None


class _Close(torch.autograd.Function):
    """They are home, summed over a row's copies; backward the gradient sets out, in the form that rows have."""

    @staticmethod
    def forward(ctx: Any, journey: Journey, y: Tensor) -> Tensor:
        ctx.journey = journey
        return once(lambda: journey.close()[0], stand_in=lambda: _placeholder(y, *y.shape))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (g,) = gradients
        ctx.journey.set_out(ctx.journey.encode(g.to(ctx.journey.dtype)))
        return None, _placeholder(g, *g.shape)


@dataclass(frozen=True, slots=True)
class Sent:
    """What `send` has started: what waits for it needs no more than this."""

    journey: Journey
    x_UD: Tensor  # placeholders
    weight_UA: Tensor
    offsets_E: Tensor  # int32, ends of the own experts' rows
    n_rows: int
    n_home: int
    n_tokens: int


class Transport(ABC):
    """Where rows go is the difference between transports; how they travel and are summed is here.

    One all-gather of counts and one wait of the host for each layer and micro-batch give the sizes of every transfer,
    forward and backward. Arrived rows stand in the order of their source ranks, so that an expert's rows do not
    depend on the transport, nor on how tokens are cut into ranks that hold them in order.
    """

    def __init__(self, peers: Peers, n_experts: int, wire: Wire | None) -> None:
        self.peers, self.n_experts, self.wire = peers, n_experts, wire

    def rows(self, x_ND: Tensor, weight_NA: Tensor, expert_NA: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rows that are sent, each with its choices: the tokens."""
        return x_ND, weight_NA, expert_NA

    def rank_of(self, expert: Tensor) -> Tensor:
        """The rank that holds an expert."""
        n_ranks = len(self.peers.shares)
        return (expert * n_ranks + n_ranks - 1).div(self.n_experts, rounding_mode="floor")

    def send(self, x_ND: Tensor, weight_NA: Tensor, expert_NA: Tensor) -> Sent:
        """Start to send tokens to the ranks of their experts; expert_NA: their numbers among all."""
        kind, n_tokens = x_ND.device.type, len(x_ND)
        if torch.is_autocast_enabled(kind):
            x_ND = x_ND.to(torch.get_autocast_dtype(kind))
        x, weight, expert = self.rows(x_ND, weight_NA, expert_NA)
        journey, offsets_E, n_rows = once(lambda: self._plan(x, expert))
        x_UD, weight_UA = _Leave.apply(journey, x, weight, expert)
        return Sent(journey, x_UD, weight_UA, offsets_E, n_rows, len(x), n_tokens)

    def _plan(self, x: Tensor, expert: Tensor) -> tuple[Journey, Tensor, int]:
        """The journey of rows, the ends of the own experts' rows, and how many these are."""
        peers = self.peers
        to_rank_XR = torch.zeros(len(x), len(peers.shares), dtype=torch.bool, device=x.device)
        to_rank_XR.scatter_(1, self.rank_of(expert), True)
        to_node_XG = to_rank_XR.unflatten(1, (peers.n_nodes, peers.per_node)).any(2)
        # Not bincount, which makes the host wait for a device.
        per_expert_E = torch.zeros(self.n_experts, dtype=torch.int64, device=x.device)
        per_expert_E.scatter_add_(0, expert.flatten(), torch.ones_like(expert.flatten()))
        counts = torch.cat([to_node_XG.sum(0), to_rank_XR.sum(0), per_expert_E])
        table, numbers = peers.gather(counts)
        own = slice(*(peers.n_nodes + len(peers.shares) + end for end in self._own()))
        hops, n_arrived, second = self.route(to_rank_XR, to_node_XG, expert.shape[1], numbers)
        journey = Journey(self.wire, x.shape[1], x.dtype, hops, n_arrived, second)
        self.sort(journey, table)
        offsets_E = table[:, own].sum(0).cumsum(0).to(torch.int32)
        n_rows = sum(sum(row[own]) for row in numbers)
        return journey, offsets_E, n_rows

    def receive(self, sent: Sent, experts: ExpertRows) -> Steps[Tensor]:
        """sum over a token's choices of weight times expert, (N, D): computed at the experts, summed on the way."""
        start, end = self._own()
        while sent.journey.pass_on():
            yield
        x_UD, weight_UA, expert_UA = _Enter.apply(sent.journey, sent.x_UD, sent.weight_UA)
        n_choices = expert_UA.shape[1]
        key_UA = torch.where((expert_UA >= start) & (expert_UA < end), expert_UA - start, end - start)
        choice_P = key_UA.flatten().argsort(stable=True)
        places_UA = torch.empty_like(choice_P)
        places_UA.scatter_(0, choice_P, torch.arange(len(choice_P), device=choice_P.device))
        places_UA = places_UA.view(-1, n_choices).clamp_max(sent.n_rows)
        choice_P = choice_P[: sent.n_rows]
        row_P = choice_P.div(n_choices, rounding_mode="floor")
        y_PD = experts(_Take.apply(x_UD, row_P, places_UA), sent.offsets_E)
        weight_P = _Take.apply(weight_UA.flatten()[:, None], choice_P, places_UA.view(-1, 1))
        y_UD = _Sum.apply(y_PD * weight_P.to(y_PD.dtype), row_P, places_UA)
        journey = sent.journey
        home = replace(journey, dtype=y_UD.dtype)
        y_XD = _Return.apply(home, y_UD, sent.n_home)
        yield
        while home.pass_back():
            yield
        y_XD = _Close.apply(home, y_XD)
        return self.of_tokens(y_XD, sent.n_tokens)

    def of_tokens(self, y_XD: Tensor, n_tokens: int) -> Tensor:
        return y_XD

    @abstractmethod
    def route(self, to_rank_XR: Tensor, to_node_XG: Tensor, n_choices: int, numbers: Numbers) -> Route:
        """The first hop, how many rows arrive after the last, and what makes the last if there are two.

        numbers: of every rank its copies to each node and each rank, and its choices of each expert.
        """

    def sort(self, journey: Journey, table: Tensor) -> None:  # noqa: B027 (one hop has nothing to add)
        """Say what brings arrived rows into the order of their source ranks; they have it after one hop."""

    def _own(self) -> tuple[int, int]:
        share = self.peers.shares[self.peers.rank]
        return share.start, share.stop


class DeduplicatedTransport(Transport):
    """One copy for each rank that holds experts of the token, straight there."""

    def route(self, to_rank_XR: Tensor, to_node_XG: Tensor, n_choices: int, numbers: Numbers) -> Route:
        peers, first, n_ranks = self.peers, self.peers.n_nodes, len(self.peers.shares)
        sent = numbers[peers.rank][first : first + n_ranks]
        received = [row[first + peers.rank] for row in numbers]
        return [hop(peers.everyone, to_rank_XR, sent, received, n_choices)], sum(received), None


class FlatTransport(DeduplicatedTransport):
    """A row for every (token, choice) pair, summed over the choices at home."""

    def rows(self, x_ND: Tensor, weight_NA: Tensor, expert_NA: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pairs = x_ND[:, None].expand(-1, expert_NA.shape[1], -1).flatten(0, 1)
        return pairs, weight_NA.reshape(-1, 1), expert_NA.reshape(-1, 1)

    def of_tokens(self, y_XD: Tensor, n_tokens: int) -> Tensor:
        return y_XD.view(n_tokens, len(y_XD) // max(n_tokens, 1), y_XD.shape[1]).sum(1)


class TwoHopTransport(Transport):
    """One copy a node, to the rank of equal place; from there one a rank inside the node."""

    def route(self, to_rank_XR: Tensor, to_node_XG: Tensor, n_choices: int, numbers: Numbers) -> Route:
        peers, n_nodes, width = self.peers, self.peers.n_nodes, self.peers.per_node
        node, place = divmod(peers.rank, width)
        relayed = [numbers[n * width + place] for n in range(n_nodes)]  # of the ranks whose rows come through this one
        first = hop(peers.between, to_node_XG, numbers[peers.rank][:n_nodes], [row[node] for row in relayed], n_choices)
        own = n_nodes + node * width
        sent = [sum(row[own + k] for row in relayed) for k in range(width)]
        received = [sum(numbers[n * width + k][own + place] for n in range(n_nodes)) for k in range(width)]

        def second(rows: Tensor) -> Hop:
            expert_QA = from_bytes(rows[:, -4 * n_choices :], n_choices, torch.int32)  # a row ends in its choices
            rank_QA = self.rank_of(expert_QA.long()) - node * width
            # Choices of other nodes are marked in a column that is cut off.
            goes_QL = torch.zeros(len(rank_QA), width + 1, dtype=torch.bool, device=rank_QA.device)
            goes_QL.scatter_(1, torch.where((rank_QA >= 0) & (rank_QA < width), rank_QA, width), True)
            return hop(peers.inside, goes_QL[:, :width], sent, received, n_choices)

        return [first], sum(received), second

    def sort(self, journey: Journey, table: Tensor) -> None:
        """Rows come relay by relay, and of each relay node by node."""
        peers = self.peers
        if 1 in (peers.n_nodes, peers.per_node):
            return
        sizes_R = table[:, peers.n_nodes + peers.rank]
        source_R = torch.arange(len(sizes_R), device=table.device).view(peers.n_nodes, peers.per_node).T.flatten()
        source_U = source_R.repeat_interleave(sizes_R[source_R], output_size=journey.n_arrived)
        journey.order_U = source_U.argsort(stable=True)
        journey.undo_U = journey.order_U.argsort()
