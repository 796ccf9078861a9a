"""Training steps of a preset: every component on and off, every slot on its library and on our kernels, and theirs.

Theirs is transformers' DeepseekV3 of the same sizes, batch, dtype, optimizer and clipping; without multi-token
prediction and FP8, which it does not have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ablate.bench.operation import first_line, release
from ablate.bench.results import NO_TIME
from ablate.bench.timing import Sample
from ablate.model.loss import training_loss
from ablate.spec.machine import Machine
from ablate.spec.model import ModelSpec
from ablate.spec.nodes import MODEL_SLOTS
from ablate.spec.run import Spec
from ablate.training.loads import ExpertLoads

LEFT_OUT = ("mtp", "fp8", "distill")  # what transformers' model does not have
LEARNING_RATE = 1e-3
DATASHEET_BF16 = {"H100": 989e12, "H200": 989e12}  # dense FLOP/s

Step = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Rung:
    """One row: a model and what it runs on. `theirs`: transformers' model of the same sizes."""

    name: str
    spec: Spec
    theirs: bool = False


def rungs(base: Any, machine: Machine) -> Iterator[list[Rung]]:
    """Rungs in groups that are measured in turn; the most telling first."""
    from ablate.components.variants import Variant

    full = Variant.full(base)
    everything, comparable = full.resolve(base), full.without(LEFT_OUT).resolve(base)
    yield [
        Rung("comparable, ours", comparable),
        Rung("comparable, ours by libraries", on(comparable, "library")),
        Rung("comparable, transformers", comparable, theirs=True),
    ]
    by_libraries = [Rung("full by libraries", on(everything, "library"))] if machine.kind == "cuda" else []
    by_kernels = [Rung("full by our kernels", on(everything, "triton"))] if machine.runs_triton else []
    yield [Rung("full", everything), *by_libraries, *by_kernels]
    for name in full.on:
        if name != "distill":  # where text comes from is no part of a step
            yield [Rung(f"full without {name}", full.without([name]).resolve(base))]
    yield [Rung("none", Variant.none().resolve(base))]
    if machine.kind == "cuda":
        for slot in everything.model.backends:
            yield [Rung(f"full by libraries, {slot} by our kernels", on(on(everything, "library"), "triton", slot))]


def on(spec: Spec, backend: str, *slots: str) -> Spec:
    """The same with a backend in these slots (in all), where their nodes have it."""
    return replace(spec, model=spec.model.with_backends(dict.fromkeys(slots or MODEL_SLOTS, backend)))


def ladder(
    base: Any,
    machine: Machine,
    peak_flops: float,
    *,
    batch: int,
    length: int,
    rounds: int,
    left_s: Callable[[], float],
    done: Collection[str] = (),
) -> Iterator[dict[str, Any]]:
    """A row for each rung that is not among the names `done`, as its group is measured."""
    for whole in rungs(base, machine):
        group = [rung for rung in whole if rung.name not in done]
        if left_s() <= 0:
            yield from ({"name": rung.name, "status": "unavailable", "reason": NO_TIME} for rung in group)
            continue
        yield from _measured(group, machine, peak_flops, batch, length, rounds)
        release()


def _measured(
    group: Sequence[Rung], machine: Machine, peak_flops: float, batch: int, length: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """All of a group at once, in turn; where they do not fit together one by one, and then with less batch."""
    if (found := _if_it_fits(group, machine, peak_flops, batch, length, rounds)) is not None:
        yield from found
        return
    for rung in group:
        for size in (batch, batch // 2, batch // 4):
            if (found := _if_it_fits([rung], machine, peak_flops, max(1, size), length, rounds)) is not None:
                yield from found
                break
        else:
            yield {"name": rung.name, "status": "failed", "reason": "out of memory at a quarter of the batch"}


def _if_it_fits(*arguments: Any) -> list[dict[str, Any]] | None:
    """Rows as of `_in_turn`; None where memory is short, with nothing of the attempt left.

    Memory is released outside the handler: inside it the fault keeps every frame, and so every model, alive.
    """
    try:
        return _in_turn(*arguments)
    except torch.OutOfMemoryError:
        pass
    release()
    return None


def _in_turn(
    group: Sequence[Rung], machine: Machine, peak_flops: float, batch: int, length: int, rounds: int
) -> list[dict[str, Any]]:
    device = torch.device(machine.kind)
    rows: list[dict[str, Any]] = []
    steps: dict[str, Step] = {}
    for rung in group:
        row: dict[str, Any] = {"name": rung.name, "status": "measured"}
        rows.append(row)
        try:
            spec = rung.spec.for_machine(machine)
            row["backends"] = {"all": "transformers"} if rung.theirs else dict(spec.model.backends)
            window = windows(spec.model.vocab_size, batch, length, device)
            before = _begin(device)
            step = (theirs if rung.theirs else ours)(spec, window, device)
            step()
            if machine.interpreted and "triton" in row["backends"].values():
                row |= {"status": "checked", "reason": "it ran, and is not timed: its kernels are interpreted"}
                continue
            step()
            steps[rung.name] = step
        except torch.cuda.OutOfMemoryError:
            raise
        except ImportError as fault:
            row |= {"status": "unavailable", "reason": f"{fault.name} is not installed"}
        except Exception as fault:
            row |= {"status": "failed", "reason": first_line(fault)}
        else:
            row |= {"tokens_per_step": batch * length, "peak_bytes": _peak(device, before)}
    try:
        samples = in_turn(steps, rounds, device)
    except torch.OutOfMemoryError:
        raise
    except Exception as fault:
        samples = {}
        for row in (row for row in rows if row["name"] in steps):
            row |= {"status": "failed", "reason": first_line(fault)}
    for rung, row in zip(group, rows, strict=True):
        if rung.name in samples:
            row |= figures(rung.spec.model, samples[rung.name], batch, length, machine, peak_flops)
    return rows


def figures(
    model: ModelSpec, sample: Sample, batch: int, length: int, machine: Machine, peak_flops: float
) -> dict[str, Any]:
    """Tokens a second, and MFU with exact causal FLOPs (ModelSpec.cost); recomputation is not counted."""
    flops = model.cost(length).training_flops_per_token
    rate = batch * length / sample.median
    datasheet = next((peak for name, peak in DATASHEET_BF16.items() if name in machine.name), None)
    return {
        "seconds": sample.summary(),
        "tokens_per_s": rate,
        "training_flops_per_token": flops,
        "mfu_of_measured_peak": rate * flops / peak_flops,
        "mfu_of_datasheet": rate * flops / datasheet if datasheet else None,
    }


def windows(vocab_size: int, batch: int, length: int, device: torch.device) -> Tensor:
    """Random token numbers, (batch, length + 1)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (batch, length + 1), generator=generator).to(device)


def ours(spec: Spec, window: Tensor, device: torch.device) -> Step:
    """One step of a variant for this machine, with everything that its slots add to it."""
    from ablate.model.block import recompute_blocks
    from ablate.model.transformer import Transformer

    with device:
        model = Transformer(spec.model)
    fill(model, spec.model)
    recompute_blocks(model, spec.trainer.recompute)
    batch, balance, loads = {"window_BT1": window}, spec.model.balance, ExpertLoads()
    updates = [callback.update for callback in balance.callbacks()] if balance is not None else []

    def loss() -> Tensor:
        found = training_loss(model, spec.data.text, batch, decaying=False)
        loads.add(found.routing)
        return found.total

    def before_step() -> None:
        for update in updates:
            update(loads.counts)
        loads.counts = {}

    return training_step(model, loss, before_step, spec.trainer.dtype, device)


def fill(model: nn.Module, spec: ModelSpec) -> None:
    """Weights of the specification's deviation, made where they are: speed does not depend on which."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, spec.init.deviation(parameter.shape[-1]))
            else:
                parameter.fill_(1.0)


def theirs(spec: Spec, window: Tensor, device: torch.device) -> Step:
    """One step of transformers' model of the same sizes."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    from ablate.export.config import hf_config

    config = DeepseekV3Config(**hf_config(spec.model, window.shape[1] - 1), use_cache=False)
    with device:
        model = DeepseekV3ForCausalLM(config).train()

    def loss() -> Tensor:
        logits = model(window[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), window[:, 1:].flatten())

    return training_step(model, loss, lambda: None, spec.trainer.dtype, device)


def training_step(
    model: nn.Module, loss: Callable[[], Tensor], before_step: Step, dtype: str, device: torch.device
) -> Step:
    """Loss, backward, clipping, AdamW: float32 weights, bfloat16 by autocast where the run asks for it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext():
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        before_step()
        optimizer.step()

    return step


def in_turn(steps: Mapping[str, Step], rounds: int, device: torch.device) -> dict[str, Sample]:
    """Seconds of whole steps, A B A B; each ends when the device has done it."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            _wait(device)
            start = time.perf_counter()
            step()
            _wait(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: Sample(tuple(values)) for name, values in seconds.items() if values}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _begin(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak(device: torch.device, before: int) -> int | None:
    """Bytes beyond those that the other models of the group hold; None where nobody counts."""
    return torch.cuda.max_memory_allocated() - before if device.type == "cuda" else None
