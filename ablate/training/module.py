"""Training of one run: the LightningModule. It knows slots, and no component by name."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional as F

from ablate.data.batches import Batch
from ablate.model.transformer import Transformer, initialise
from ablate.spec.run import RunSpec
from ablate.training.schedule import learning_rate_factor

BURN_SIZE = 256


def burn(flops: float, device: torch.device) -> int:
    """Multiply matrices for about `flops` and forget the result: a control. Returns the products made."""
    matrix = torch.ones(BURN_SIZE, BURN_SIZE, device=device)
    n = round(flops / (2 * BURN_SIZE**3))
    for _ in range(n):
        matrix @ matrix
    return n


class TrainingModule(LightningModule):
    """Main-head loss, plus the objective's, plus the balance's, each by the node that brings it.

    `expert_load`: int64 counts (E,) by router since the last optimizer step, added once per micro-batch from what
    the forward pass returned. `step_losses`: main-head losses of the steps since somebody last took them.
    """

    model: Transformer

    def __init__(self, run: RunSpec) -> None:
        super().__init__()
        self.run = run
        self.n_micro_batches = run.trainer.batch_size // run.trainer.micro_batch_size
        self.expert_load: dict[Any, Tensor] = {}
        self.step_losses: list[Tensor] = []

    def configure_model(self) -> None:
        if not hasattr(self, "model"):
            self.model = Transformer(self.run.model)
            initialise(self.model, self.run.model.init, self.run.seed)

    def configure_optimizers(self) -> Any:
        trainer = self.run.trainer
        optimizer = trainer.optimizer.build(self.model, trainer.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(trainer, self.run.n_steps, step)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        window_BT1 = batch["window_BT1"]
        inputs_BT, targets_BT = window_BT1[:, :-1], window_BT1[:, 1:]
        prediction = self.model.predict(inputs_BT)
        main, logits_BTC = self._main_head(prediction.hidden_BTD, self._learned(targets_BT, batch_idx))
        loss = self.run.text.loss(main, logits_BTC, batch)
        weight = self.run.model.objective.loss_weight(self.global_step / self.run.n_steps)
        if weight:
            loss = loss + weight * self.model.objective.loss(prediction.future, targets_BT, self.model.head)
        if self.run.model.balance is not None:
            loss = loss + self.run.model.balance.loss(prediction.routing, self.expert_load)
        for routing in prediction.routing:
            counts_E = routing.counts_BE.sum(0)
            known = self.expert_load.get(routing.router)
            self.expert_load[routing.router] = counts_E if known is None else known + counts_E
        self._keep(main.detach(), batch_idx)
        return loss

    def _main_head(self, hidden_BTD: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor | None]:
        """The next-token cross-entropy, and the logits if the text's loss wants them."""
        if not self.run.text.wants_logits:
            return self.model.head.cross_entropy(hidden_BTD, targets_BT), None
        logits_BTC = self.model.head(hidden_BTD).float()
        return F.cross_entropy(logits_BTC.flatten(0, 1), targets_BT.flatten()), logits_BTC

    def _learned(self, targets_BT: Tensor, batch_idx: int) -> Tensor:
        """The main head's targets; those that a control masks are -100, which the loss leaves out."""
        control = self.run.trainer.control
        if control.extra_flops_share:
            flops = self.run.model.cost(targets_BT.shape[1]).training_flops_per_token * targets_BT.numel()
            burn(flops * control.extra_flops_share, targets_BT.device)
        if not control.masked_target_share:
            return targets_BT
        place = f"step {self.global_step}, micro-batch {batch_idx % self.n_micro_batches}"
        digest = hashlib.sha256(f"masked targets, seed {self.run.seed}, {place}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        masked_BT = torch.rand(targets_BT.shape, generator=generator) < control.masked_target_share
        return targets_BT.masked_fill(masked_BT.to(targets_BT.device), -100)

    def _keep(self, main: Tensor, batch_idx: int) -> None:
        share = main / self.n_micro_batches
        if batch_idx % self.n_micro_batches == 0:
            self.step_losses.append(share)
        else:
            self.step_losses[-1] = self.step_losses[-1] + share

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        # Lightning refuses to clip for a fused optimizer under mixed precision, for fear of scaled gradients;
        # bfloat16 scales none.
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), gradient_clip_val)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        # Callbacks see the step's load before this hook runs; the next step counts anew.
        self.expert_load = {}
