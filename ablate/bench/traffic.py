"""What a training step asks of a device, counted without one: operators dispatched, conversions, bytes that they move.

Every operator of a step is seen as it is dispatched. Tensors may be fake (`torch._subclasses.FakeTensorMode`), which
have a shape and no numbers: then a step of any size is counted in seconds, kernels of this program are one operator
each, and whoever reads a value raises an error.
"""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ablate.model.loss import training_loss
from ablate.model.step_weights import begin_step, end_step
from ablate.spec.run import Spec
from ablate.training.loads import ExpertLoads

# What makes the host wait: values that it reads, and results whose size only the device knows.
WAITS = frozenset({
    "_local_scalar_dense", "item", "equal", "is_nonzero", "bincount", "nonzero", "masked_select", "unique_consecutive",
    "_unique2", "unique_dim", "repeat_interleave", "histc", "_assert_async", "argwhere", "allclose",
})  # fmt: skip
BY_MASK = "index by a mask"  # as many results as are true
# Of what these are given they read as much as they write.
GATHERING = frozenset({"embedding", "index", "index_select", "gather"})
NOTHING_MOVES = frozenset({"device", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"})


class Traffic(TorchDispatchMode):
    """Counts operators by name, and the bytes of their operands and results, each tensor once an operator.

    That is what must go through memory if nothing stays in a cache; views and empty tensors cost nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, name = kwargs or {}, func.__name__.partition(".")[0]
        result = func(*args, **given)
        if name in ("index", "index_put", "index_put_"):
            name = BY_MASK if any(t is not None and t.dtype == torch.bool for t in args[1]) else name
        if not (_is_view(func) or name in NOTHING_MOVES):
            self.operators[name] += 1
            self.bytes[name] += _moved(name, (args, given), result)
        return result

    @property
    def waits(self) -> set[str]:
        """The operators among them for which the host would wait."""
        return {name for name in self.operators if name in WAITS or name == BY_MASK}

    @property
    def n_operators(self) -> int:
        return sum(self.operators.values())

    @property
    def n_bytes(self) -> int:
        return sum(self.bytes.values())


def _is_view(func: Any) -> bool:
    infos = [value.alias_info for value in func._schema.returns]
    return any(info is not None and not info.is_write for info in infos)


def _moved(name: str, given: Any, result: Any) -> int:
    written = {id(t): t for t in tree_leaves(result) if isinstance(t, Tensor)}
    read = {id(t): t for t in tree_leaves(given) if isinstance(t, Tensor)}
    if name in GATHERING:
        return 2 * sum(map(_bytes, written.values()))
    return sum(map(_bytes, (written | read).values()))


def _bytes(tensor: Tensor) -> int:
    """Of a tensor's numbers, each once: an expanded one has fewer than its shape says."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def counted(spec: Spec, *, n_micro_batches: int, fake: bool = True, once_a_step: bool = True) -> Traffic:
    """The traffic of one optimizer step of `spec`, on backends as it names them, from the gradients' clearing on.

    fake: without numbers; else computed, on the processor. once_a_step: weights are converted for all micro-batches
    together (`model.step_weights`), and not in each.
    """
    with FakeTensorMode() if fake else nullcontext():
        return _step(spec, n_micro_batches, once_a_step)


def _step(spec: Spec, n_micro_batches: int, once_a_step: bool) -> Traffic:
    from ablate.bench.step import fill
    from ablate.model.transformer import Transformer

    model, trainer = Transformer(spec.model), spec.trainer
    fill(model, spec.model)
    loads, balance = ExpertLoads(), spec.model.balance
    optimizer = trainer.optimizer.build(model, trainer.learning_rate)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # which makes the moments, once a run
    shape = (trainer.micro_batch_size, trainer.sequence_length + 1)
    window_BT1 = torch.randint(spec.model.vocab_size, shape)
    model.rotation(trainer.sequence_length)  # made once a run
    half = torch.autocast("cpu", torch.bfloat16) if trainer.dtype == "bfloat16" else nullcontext()
    with Traffic() as traffic:
        optimizer.zero_grad()
        if once_a_step:
            begin_step()
        try:
            for _ in range(n_micro_batches):
                with half:
                    found = training_loss(model, spec.data.text, {"window_BT1": window_BT1}, decaying=False)
                loads.add(found.routing)
                found.total.backward()
        finally:
            end_step()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for callback in balance.callbacks() if balance is not None else []:
            callback.update(loads.counts)
        optimizer.step()
    return traffic
