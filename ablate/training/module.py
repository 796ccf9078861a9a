"""Training of one run: the LightningModule. It knows slots, and no component by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor

from ablate.data.batches import Batch
from ablate.model.block import recompute_blocks
from ablate.model.loss import training_loss
from ablate.model.step_weights import begin_step, end_step
from ablate.model.transformer import Transformer, initialise, parameter_hashes
from ablate.randomness import torch_generator
from ablate.spec.run import RunSpec
from ablate.training.evaluation import HeldOut, Tally, figures, tallies
from ablate.training.loads import ExpertLoads
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
    """Trains a run's model on its training loss.

    `routing` is that of the last micro-batch, `loads` counts it by optimizer step; `step_losses` are the main head's
    losses of the steps since somebody last took them; `expert_loads` are the tokens that each router sent to each
    expert over the held-out windows of the last evaluation.
    """

    model: Transformer

    def __init__(self, run: RunSpec) -> None:
        super().__init__()
        self.run = run
        self.n_micro_batches = run.trainer.batch_size // run.trainer.micro_batch_size
        self.loads = ExpertLoads()
        self.routing: list[Any] = []
        self.step_losses: list[Tensor] = []
        self.expert_loads: dict[str, tuple[int, ...]] = {}

    def configure_model(self) -> None:
        if not hasattr(self, "model"):
            self.model = Transformer(self.run.model)
            initialise(self.model, self.run.model.init, self.run.seed)
            recompute_blocks(self.model, self.run.trainer.recompute)

    def configure_optimizers(self) -> Any:
        trainer = self.run.trainer
        optimizer = trainer.optimizer.build(self.model, trainer.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(self.run, step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        return [self.loads]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Count the batches of a checkpoint as they come here: by micro-batches, or on ranks by whole steps."""
        n = checkpoint["global_step"] * self.n_micro_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            under_way = counts["ready"] - counts["completed"]
            counts |= {"ready": n, "started": n, "processed": n, "completed": n - under_way}

    def on_train_start(self) -> None:
        # A branch goes on from a checkpoint of its trunk, whose rate for this step was another.
        for optimizer, schedule in zip(self.trainer.optimizers, self.trainer.lr_scheduler_configs, strict=True):
            factor = learning_rate_factor(self.run, self.global_step)
            for group, rate in zip(optimizer.param_groups, schedule.scheduler.base_lrs, strict=True):
                group["lr"] = rate * factor

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Where one process goes through all micro-batches of a step: weights are converted for all of them at once.
        several = 1 < self.n_micro_batches == self.trainer.accumulate_grad_batches
        if several and batch_idx % self.n_micro_batches == 0:
            begin_step()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        end_step()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        found = training_loss(
            self.model,
            self.run.text,
            batch,
            decaying=self.global_step >= self.run.decay_start,
            targets_BT=self._learned(batch["window_BT1"][:, 1:], batch_idx % self.n_micro_batches),
            earlier_loads=self.loads.counts,
        )
        self.routing = found.routing
        self._keep(found.main, batch_idx)
        return found.total

    def _learned(self, targets_BT: Tensor, micro: int) -> Tensor:
        """The main head's targets of a micro-batch; those that a control masks are -100, which the loss leaves out."""
        control = self.run.trainer.control
        if control.extra_flops_share:
            flops = self.run.model.cost(targets_BT.shape[1]).training_flops_per_token * targets_BT.numel()
            burn(flops * control.extra_flops_share, targets_BT.device)
        if not control.masked_target_share:
            return targets_BT
        place = f"step {self.global_step}, micro-batch {micro}"
        generator = torch_generator(f"masked targets, seed {self.run.seed}, {place}")
        masked_BT = torch.rand(targets_BT.shape, generator=generator) < control.masked_target_share
        return targets_BT.masked_fill(masked_BT.to(targets_BT.device), -100)

    def evaluate(self, held_out: Mapping[str, HeldOut], batch_size: int) -> dict[str, float]:
        """The metrics of `training.evaluation.evaluate`."""
        return self._judged(tallies(self.model, held_out, batch_size=batch_size), held_out)

    def _judged(self, found: Mapping[str, Tally], held_out: Mapping[str, HeldOut]) -> dict[str, float]:
        """The metrics; the loads of experts on the corpus's own held-out text are kept."""
        self.expert_loads = {router: tuple(load_E.tolist()) for router, load_E in found["held_out"].loads.items()}
        return figures(found, held_out)

    def hashes(self) -> dict[str, str]:
        """`parameter_hashes` of the model."""
        return parameter_hashes(self.model)

    def whole_state(self) -> dict[str, Tensor]:
        """The model's state, in its order."""
        return dict(self.model.state_dict())

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
        # bfloat16 scales none. As with Lightning itself, 0 is no clipping.
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), gradient_clip_val)
