"""A forward and a backward pass that take turns: what is behind what, and that nothing of the numbers changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ablate.components.alltoall.spec import Deduplicated, Flat, TwoHop
from ablate.components.variants import Variant
from ablate.model.block import recompute_blocks
from ablate.model.stage import Stage, stage_loss
from ablate.model.transformer import Transformer, initialise
from ablate.model.turns import Pass, Steps, beside, give_way
from ablate.parallel.executor import Pipeline
from ablate.parallel.experts import divided
from ablate.parallel.mesh import Mesh
from ablate.parallel.transport.channel import Channel
from ablate.parallel.transport.peers import alone
from ablate.presets import preset
from ablate.schedules.action import Action, Schedule
from ablate.spec.ranks import Ranks
from ablate.spec.run import TextNode

LAYERS, N_ROUTED, LENGTH = 3, 3, 16  # the first is dense; one more is there for a further token
WHOLE = Stage(range(LAYERS), True, True)


class Log(TorchDispatchMode):
    """Which pass does what: products ("mm"), transfers that start and that are waited for, numbered."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, str, int]] = []
        self.who, self.n = "backward", 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.mm:
            self.events.append(("mm", self.who, -1))
        return func(*args, **(kwargs or {}))

    @contextmanager
    def forward(self) -> Iterator[None]:
        self.who = "forward"
        yield
        self.who = "backward"

    def hidden_behind(self, number: int) -> set[str]:
        """Whose products lie between a transfer's start and its end."""
        (who,) = {w for what, w, n in self.events if n == number}
        start, end = (self.events.index((what, who, number)) for what in ("start", "wait"))
        return {w for what, w, _ in self.events[start:end] if what == "mm"}

    def transfers(self, who: str) -> list[int]:
        """Of the second forward or the first backward pass: the two that may be a pair."""
        found = [n for what, w, n in self.events if (what, w) == ("start", who)]
        return found[len(found) // 2 :] if who == "forward" else found[: len(found) // 2]


@dataclass
class Logged:
    """A channel of one rank that tells the log."""

    log: Log
    channel: Channel = field(default_factory=lambda: Channel("logged", None))

    def start(self, rows: Tensor, sent: Sequence[int], received: Sequence[int], way: Any) -> Any:
        log, flight = self.log, self.channel.start(rows, sent, received, way)
        log.n += 1
        number, who = log.n, log.who
        log.events.append(("start", who, number))

        class Flight:
            def wait(self) -> Tensor:
                log.events.append(("wait", who, number))
                return flight.wait()

        return Flight()


def model_on(log: Log, node: Any, recompute: str = "none") -> tuple[Transformer, TextNode]:
    """All experts on one rank, reached by a transport; float64."""
    small = preset("nano")
    small = replace(small, model=replace(small.model, n_layers=LAYERS))
    spec = (Variant.full(small) | {"distill": "raw", "fp8": "bf16"}).resolve(small)
    model = Transformer(spec.model.portable().with_backends({"linear": "reference"}))
    n: int = getattr(spec.model.feed_forward, "n_routed_experts")  # noqa: B009
    channels: Any = {name: Logged(log) for name in ("everyone", "between", "inside")}
    peers = replace(alone(n), **channels)
    divided(model, peers, node.build(peers, n, None), n)
    initialise(model, spec.model.init, 0)
    recompute_blocks(model, recompute)
    return model, spec.data.text


def schedule(*actions: Action) -> Schedule:
    """Two micro-batches through a single stage."""
    return Schedule(name="pair", n_micro_batches=2, placement=((0,),), ranks=(actions,))


FIRST, SECOND, BACK = Action("F", 0, 0), Action("F", 0, 1), Action("B", 0, 1)
APART = schedule(FIRST, SECOND, Action("B", 0, 0), BACK)
PAIR = schedule(FIRST, replace(SECOND, paired=True), Action("B", 0, 0), BACK)
PAIR_IN_PARTS = schedule(FIRST, replace(SECOND, paired=True), Action("I", 0, 0), Action("W", 0, 0), BACK)


def train(table: Schedule, node: Any, recompute: str = "none") -> tuple[Log, list[Tensor], dict[str, Tensor | None]]:
    """What happens when, the losses, and the gradients."""
    log, losses = Log(), list[Tensor]()
    model, text = model_on(log, node, recompute)

    def forward(stage: int, x: Tensor | None, micro: int) -> Steps[tuple[Tensor, Tensor | None]]:
        window = torch.randint(model.spec.vocab_size, (2, LENGTH + 1), generator=torch.Generator().manual_seed(micro))
        made = yield from stage_loss(model, WHOLE, x, text, {"window_BT1": window}, decaying=False)
        losses.append(made.output.detach())
        return made.output, made.balance

    pipeline = Pipeline(table, Mesh(Ranks(data=2, expert=2), 0, {}))
    with log:
        assert pipeline.train(forward, lambda micro: torch.empty(0), 0.5, log.forward) == 2
    return log, losses, {name: p.grad for name, p in model.named_parameters()}


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("node", [TwoHop(), Flat(), Deduplicated()], ids=lambda n: n.kind)
def test_each_pass_computes_while_rows_of_the_other_travel(node: Any, recompute: str) -> None:
    apart, losses, gradients = train(APART, node, recompute)
    n = 2 * N_ROUTED * (2 if node.kind == "two-hop" else 1)  # dispatch and combine, or their ways back
    for table in (PAIR, PAIR_IN_PARTS):
        log, same_losses, same = train(table, node, recompute)
        assert same_losses == losses
        for name, gradient in gradients.items():
            found = same[name]
            assert (found is None) == (gradient is None), name
            assert gradient is None or torch.equal(found, gradient), name  # type: ignore[arg-type]
        for who in ("forward", "backward"):
            # By itself a pass computes its shared experts while rows make one hop in each layer; for the rest it waits.
            assert sum(bool(apart.hidden_behind(i)) for i in apart.transfers(who)) == N_ROUTED
            assert len(log.transfers(who)) == n
            assert all(log.hidden_behind(i) for i in log.transfers(who))


def test_a_step_is_made_in_its_own_context_and_leaves_the_others() -> None:
    seen: list[str] = []

    def steps() -> Steps[str]:
        for i in range(3):
            seen.append(f"{i} {torch.is_grad_enabled()}")
            give_way()  # what waits inside a step gives way to nobody
            yield
        return "made"

    def around() -> AbstractContextManager[Any]:
        return torch.enable_grad()

    going = Pass(steps(), around)
    with torch.no_grad(), beside(going):
        for expected in (1, 2, 3, 3):
            give_way()
            assert len(seen) == expected
            assert not torch.is_grad_enabled()
        give_way()
    give_way()
    assert seen == ["0 True", "1 True", "2 True"]
    assert going.finish() == "made"
    with beside(going), pytest.raises(AssertionError, match="take turns"), beside(going):
        pass


def test_an_error_in_a_step_is_the_errors_of_the_pass_that_gave_way() -> None:
    def steps() -> Steps[None]:
        yield
        raise ValueError("no rows")

    going: Pass[None] = Pass(steps(), nullcontext)
    with beside(going):
        give_way()
        with pytest.raises(ValueError, match="no rows"):
            give_way()
    give_way()  # nobody is beside any more
