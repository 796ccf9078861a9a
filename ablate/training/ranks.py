"""Training and evaluation of one run on several ranks: what the LightningModule does where a schedule runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ablate.data.batches import Batch
from ablate.model.block import recompute_blocks
from ablate.model.stage import predict, stage_loss
from ablate.model.transformer import Transformer, parameter_hash
from ablate.model.turns import Steps
from ablate.parallel.experts import hold
from ablate.parallel.team import Team
from ablate.spec.run import RunSpec
from ablate.training.evaluation import HeldOut, Tally
from ablate.training.module import TrainingModule


class RanksModule(TrainingModule):
    """One rank's share. A batch of Lightning's is the list of all micro-batches of an optimizer step."""

    def __init__(self, run: RunSpec, team: Team) -> None:
        super().__init__(run)
        self.team = team
        self.n_micro_batches = 1
        self.batches: list[Batch] = []
        self.routers: dict[str, int] = {}  # name -> number of experts, of the whole model

    def configure_model(self) -> None:
        if not hasattr(self, "model"):
            run, team = self.run, self.team
            held = hold(run.model, run.trainer.transport, team.mesh, seed=run.seed, part=team.part)
            self.model, self.parts, self.holders = held.model, held.parts, held.holders
            recompute_blocks(self.model, run.trainer.recompute)

    def configure_optimizers(self) -> Any:
        """Where states are divided, an optimizer of this rank's parameters alone: it has states of what it steps."""
        made = super().configure_optimizers()
        if self.run.trainer.zero_stage:
            names = {parameter: name for name, parameter in self.model.named_parameters()}
            for group in made["optimizer"].param_groups:
                group["params"] = [p for p in group["params"] if self.holders.owns(names[p])]
        return made

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        self.model.zero_grad()  # of parameters that others step too

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.batches = batch
        return torch.zeros((), device=self.device)

    @property
    def mine(self) -> range:
        """Micro-batches of a step that go through this rank's pipeline."""
        n = len(self.batches) // self.team.mesh.ranks.data
        return range(self.team.mesh.data_rank * n, (self.team.mesh.data_rank + 1) * n)

    def run_step(self) -> None:
        """All passes of an optimizer step: leaves gradients, expert counts and the loss, each of the whole batch."""
        precision, decaying = self.trainer.precision_plugin, self.global_step >= self.run.decay_start
        losses: list[Tensor] = []
        first = self.mine.start

        def forward(stage: int, x: Tensor | None, micro: int) -> Steps[tuple[Tensor, Tensor | None]]:
            batch, last = self.batches[first + micro], self.team.stages[stage].last
            made = yield from stage_loss(
                self.model,
                self.team.stages[stage],
                x,
                self.run.text,
                batch,
                decaying=decaying,
                targets_BT=self._learned(batch["window_BT1"][:, 1:], first + micro) if last else None,
            )
            self.loads.add(made.routing)
            if made.main is not None:
                losses.append(made.main)
            return made.output, made.balance

        shape = (*self.batches[0]["window_BT1"][:, 1:].shape, self.run.model.dim)
        self.team.pipeline.train(
            forward, lambda micro: self._empty(shape), 1 / len(self.batches), precision.train_step_context
        )
        with self.team.mesh.spans.behind("G"):
            self.holders.join()
            self.loads.counts = self._everywhere(self.loads.counts)
            # Of one dtype on all ranks, whichever of them have a head.
            total = torch.zeros((), dtype=torch.float64, device=self.device)
            for loss in losses:
                total += loss
            dist.all_reduce(total)  # each loss has arisen on one rank
        self.step_losses.append((total / len(self.batches)).float())

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        some = next(self.model.parameters())
        return torch.empty(shape, dtype=some.dtype, device=some.device)

    def _everywhere(self, counts: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
        """Counts of this rank's routers over the whole batch: both copies of a stage, all data ranks."""
        names = {module: name for name, module in self.model.named_modules()}
        mine = {names[router]: counts_E for router, counts_E in counts.items()}
        if not self.routers:
            every: list[dict[str, int]] = [{} for _ in range(self.team.mesh.ranks.world)]
            dist.all_gather_object(every, {name: len(counts_E) for name, counts_E in mine.items()})
            self.routers = {name: n for found in every for name, n in sorted(found.items())}
        if not self.routers:
            return {}
        zero = {name: torch.zeros(n, dtype=torch.int64, device=self.device) for name, n in self.routers.items()}
        flat = torch.cat([mine.get(name, zero[name]) for name in self.routers])
        dist.all_reduce(flat)
        parts = dict(zip(self.routers, flat.split(list(self.routers.values())), strict=True))
        return {router: parts[names[router]] for router in counts}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        if gradient_clip_val:
            self.holders.clip(gradient_clip_val, self.team.names)

    def evaluate(self, held_out: Mapping[str, HeldOut], batch_size: int) -> dict[str, float]:
        """Every rank gets the figures of all windows."""
        self.model.eval()
        tallies = {name: self._tally(windows, batch_size) for name, windows in held_out.items()}
        self.model.train()
        return self._judged(tallies, held_out)

    def _tally(self, held_out: HeldOut, batch_size: int) -> Tally:
        mesh, tally = self.team.mesh, Tally()
        windows = self._share(held_out.windows_WT1, batch_size)
        names = {module: name for name, module in self.model.named_modules()}

        def forward(stage: int, x: Tensor | None, micro: int) -> Steps[tuple[Tensor, None]]:
            window_BT1 = windows[micro].to(self.device)
            made, routing = yield from predict(self.model, self.team.stages[stage], x, window_BT1[:, :-1])
            tally.count(routing, names)
            if not self.team.stages[stage].last:
                return made, None
            tally.add(self.model.head, made, window_BT1)
            return made.hidden_BTD, None

        dim, length = self.run.model.dim, self.run.trainer.sequence_length
        self.team.pipeline.evaluate(
            forward, lambda micro: self._empty((len(windows[micro]), length, dim)), len(windows)
        )
        every: list[Any] = [None] * mesh.ranks.world
        dist.all_gather_object(every, tally)
        return Tally.sum(every)

    def _share(self, windows_WT1: Tensor, batch_size: int) -> list[Tensor]:
        """The batches of windows that go through this rank's pipeline.

        Ranks that share experts meet in every layer, so each of them goes through equally many, the last one empty
        where there is none left.
        """
        batches, ranks = list(windows_WT1.split(batch_size)), self.team.mesh.ranks
        if ranks.expert > 1:
            batches += [windows_WT1[:0]] * (-len(batches) % ranks.data)
        return batches[self.team.mesh.data_rank :: ranks.data]

    def writes(self, name: str) -> bool:
        """Whether this rank is the one that writes a name of the state: the lowest that holds it."""
        parameter = name.removeprefix("model.")
        if parameter in self.holders.parameters:
            return self.holders.first(parameter)
        module = parameter.rpartition(".")[0]  # of a buffer: as its module's parameters
        return any(n.startswith(f"{module}.") and self.holders.first(n) for n in self.holders.parameters)

    def writes_state(self, name: str) -> bool:
        """The same of the optimizer's state of a parameter."""
        return self.holders.owns(name.removeprefix("model.")) if self.run.trainer.zero_stage else self.writes(name)

    def rows(self, name: str) -> slice:
        """Which rows of a tensor of the state are here."""
        return self.parts[name.removeprefix("model.")][0] if name.removeprefix("model.") in self.parts else slice(None)

    def hashes(self) -> dict[str, str]:
        """Of every parameter of the whole model, on all ranks."""
        mine = {name: parameter_hash(p) for name, p in self.model.named_parameters() if name not in self.parts}
        divided = {name: p.detach().cpu() for name, p in self.model.named_parameters() if name in self.parts}
        mine |= {name: parameter_hash(p) for name, p in self._whole(divided).items()}
        every: list[dict[str, str]] = [{} for _ in range(self.team.mesh.ranks.world)]
        dist.all_gather_object(every, mine)
        found = {name: text for part in every for name, text in part.items()}
        return {name: found[name] for name in self.team.names}

    def whole_state(self) -> dict[str, Tensor]:
        """The whole model's state on rank 0, in its order; nothing elsewhere."""
        found = self._whole({name: t.detach().cpu() for name, t in self.model.state_dict().items()})
        with torch.device("meta"):
            order = list(Transformer(self.run.model).state_dict()) if found else []
        return {name: found[name] for name in order}

    def _whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the whole model on rank 0, from what each rank has of them; nothing elsewhere."""
        mine = [(name, self.rows(name).start or 0, t) for name, t in state.items() if self.writes(name)]
        every: list[Any] | None = [None] * self.team.mesh.ranks.world if self.team.leads else None
        dist.gather_object(mine, every)
        found: dict[str, list[tuple[int, Tensor]]] = {}
        for name, start, tensor in (piece for part in every or () for piece in part):
            found.setdefault(name, []).append((start, tensor))
        return {name: _joined(pieces) for name, pieces in found.items()}


def _joined(pieces: list[tuple[int, Tensor]]) -> Tensor:
    """A tensor from its pieces, each with its first row."""
    in_order = [tensor for _, tensor in sorted(pieces, key=lambda piece: piece[0])]
    return in_order[0] if len(in_order) == 1 else torch.cat(in_order)
