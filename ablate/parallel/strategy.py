"""The Lightning Strategy of a run on several ranks: the schedule runs where Lightning has its backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from ablate.model.transformer import Transformer
from ablate.parallel.pieces import rows_of
from ablate.parallel.team import Team


class RanksStrategy(ModelParallelStrategy):
    """Pipeline and data ranks.

    Lightning's order is training_step, zero_grad, backward. A table that ran in training_step would lose its gradients
    to zero_grad; it runs in `backward`, so that automatic optimisation stays as it is.
    """

    lightning_restore_optimizer = True
    restore_checkpoint_after_setup = True

    def __init__(self, team: Team) -> None:
        super().__init__()
        self.team = team

    @property
    def world_size(self) -> int:
        """1, for Lightning, which else broadcasts in every step: what ranks agree on, they agree on here."""
        return 1

    def setup_environment(self) -> None:
        super(ModelParallelStrategy, self).setup_environment()
        self._setup_distributed()

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        """All forward and backward passes of an optimizer step."""
        module: Any = self.lightning_module
        module.run_step()
        return closure_loss

    def optimizer_step(self, optimizer: Any, closure: Any, model: Any = None, **kwargs: Any) -> Any:
        """The step; where each parameter is stepped by one of its holders, the others get it then."""
        module: Any = self.lightning_module
        with ExitStack() as behind:

            def passes() -> Any:
                found = closure()
                behind.enter_context(self.team.mesh.spans.behind("O"))  # from clipping on
                return found

            result = super().optimizer_step(optimizer, passes, model, **kwargs)
            if module.run.trainer.zero_stage:
                module.holders.hand_out()
        return result

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """As it is: what a module keeps of a step is summed over the ranks already, router by router."""
        return tensor

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """What every rank decides together: yes where all say so, or any."""
        n = torch.tensor(int(decision), device=self.root_device)
        dist.all_reduce(n)
        return int(n) == self.team.mesh.ranks.world if all else int(n) > 0

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What of the model is written here: the lowest rank that holds a piece writes it."""
        module: Any = self.lightning_module
        state = module.state_dict()
        return {name: rows_of(tensor, module.rows(name)) for name, tensor in state.items() if module.writes(name)}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The same of the optimizer, each parameter numbered as an optimizer of the whole model numbers it."""
        module: Any = self.lightning_module
        places, names = self._places(), {p: f"model.{n}" for n, p in module.model.named_parameters()}
        plain = getattr(optimizer, "_optimizer", optimizer)
        state = {
            places[names[p]]: {key: _as_rows(value, p, module.rows(names[p])) for key, value in s.items()}
            for p, s in plain.state.items()
            if module.writes_state(names[p])
        }
        sizes = [len(g["params"]) for g in self._whole().param_groups]
        groups, first = [], 0
        for group, size in zip(plain.param_groups, sizes, strict=True):
            settings = {key: value for key, value in group.items() if key != "params"}
            groups.append({**settings, "params": list(range(first, first + size))})
            first += size
        return {"state": state, "param_groups": groups}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take what of a whole model's state is held here."""
        module: Any = self.lightning_module
        saved = checkpoint["state_dict"]
        module.load_state_dict({name: saved[name][module.rows(name)] for name in module.state_dict()})

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """The same of the optimizer."""
        module: Any = self.lightning_module
        (optimizer,), (saved,) = self.optimizers, checkpoint["optimizer_states"]
        places, names = self._places(), {p: f"model.{n}" for n, p in module.model.named_parameters()}
        state, groups, n = {}, [], 0
        for group, kept in zip(optimizer.param_groups, saved["param_groups"], strict=True):
            for parameter in group["params"]:
                if (found := saved["state"].get(places[names[parameter]])) is not None:
                    rows = module.rows(names[parameter])
                    state[n] = {key: _own(value, parameter, rows) for key, value in found.items()}
                n += 1
            groups.append({**kept, "params": list(range(n - len(group["params"]), n))})
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        io: Any = self.checkpoint_io
        io.save_together(checkpoint, Path(filepath))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        found: dict[str, Any] = self.checkpoint_io.load_checkpoint(checkpoint_path)
        return found

    def teardown(self) -> None:
        """The process group stays: branches of a run are trained by Trainers of their own."""
        assert self.accelerator is not None
        self.precision_plugin.teardown()
        self.accelerator.teardown()

    def _whole(self) -> torch.optim.Optimizer:
        """An optimizer of the whole model, without memory."""
        run = self.lightning_module.run  # type: ignore[union-attr]
        with torch.device("meta"):
            model: nn.Module = Transformer(run.model)  # type: ignore[union-attr, arg-type]
        made: torch.optim.Optimizer = run.trainer.optimizer.build(model, 1.0)  # type: ignore[union-attr, operator]
        made.names = {p: f"model.{n}" for n, p in model.named_parameters()}  # type: ignore[attr-defined]
        return made

    def _places(self) -> dict[str, int]:
        """Name -> number of the parameter in an optimizer of the whole model."""
        whole = self._whole()
        every = [p for group in whole.param_groups for p in group["params"]]
        return {whole.names[p]: i for i, p in enumerate(every)}  # type: ignore[attr-defined]


def _as_rows(value: Any, parameter: Tensor, rows: slice) -> Any:
    """A part of a parameter's state in the optimizer: what has the parameter's shape has its rows too."""
    return rows_of(value, rows) if isinstance(value, Tensor) and value.shape == parameter.shape else value


def _own(value: Any, parameter: Tensor, rows: slice) -> Any:
    """The inverse: of what belongs to a whole parameter, what belongs to the rows that are here."""
    return value[rows].clone() if isinstance(value, Tensor) and value.ndim == parameter.ndim else value
