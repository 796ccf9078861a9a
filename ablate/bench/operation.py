"""One operation at one shape, and its implementations: none is timed before it is right.

Each implementation is first compared with float64 at a small shape. Then, at the shape that is timed, its result must
agree with that of the first one that passed, which catches a configuration that only large shapes choose. What fails is
listed with its error and has no seconds; what cannot run here is listed with the reason.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ablate.bench.timing import Ceilings, Sample, measure, n_sets
from ablate.spec.backends import without_cuda, without_triton
from ablate.spec.machine import Machine

Shape = Mapping[str, int]
Tensors = tuple[Tensor, ...]
Prepared = Callable[[], Any]

# RMS of the difference over RMS of the float64 result, by the least precise format on its way (tests: numerics.py).
TOLERANCE = {"float32": 2e-6, "bfloat16": 6e-3, "float8": 4e-2, "chain of float8": 8e-2}
LENIENCE = 4.0  # what others may be off by, in these: they round more often, and are what ours is compared with


class Unavailable(Exception):
    """Why an implementation cannot run here, in one sentence."""


class DeviceLost(Exception):
    """The device answers no call of this process any more; `name`: the implementation that it was lost to, if known."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True, kw_only=True, slots=True)
class Implementation:
    """One implementation. `prepare(*inputs)` does what is not timed and returns what is; its result goes to `read`."""

    name: str
    prepare: Callable[..., Prepared]
    needs: str = ""  # "", "cuda", or "triton": this program's kernels
    fills: str = ""  # the backend of the operation's slot that this is
    read: Callable[[Any], Tensors] = lambda result: result if isinstance(result, tuple) else (result,)
    tolerance: str = ""  # of another format than the operation's

    def allowed(self, operation: Operation) -> float:
        """The error up to which it is right."""
        return TOLERANCE[self.tolerance or operation.tolerance] * (1.0 if self.needs == "triton" else LENIENCE)

    def obstacle(self, machine: Machine) -> str:
        """Why it cannot run on a machine; "" if it can."""
        return {"": lambda _: "", "cuda": without_cuda, "triton": without_triton}[self.needs](machine)


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """`shape` is timed on a GPU; `small` is what float64 is compared at, and all that a processor does.

    `inputs(shape, seed)` makes tensors on the current default device; `expected` gets them in float64.
    """

    group: str
    name: str
    shape: Shape
    small: Shape
    inputs: Callable[[Shape, int], Tensors]
    expected: Callable[..., Any]
    implementations: Sequence[Implementation]
    tolerance: str = "bfloat16"
    flops: Callable[[Shape], float] = lambda shape: 0.0
    bytes: Callable[[Shape], float] = lambda shape: 0.0
    slot: str = ""  # of a model, whose backend the fastest implementation may become

    @property
    def title(self) -> str:
        """Name and timed shape, as in the lines that people read."""
        return f"{self.name} {' '.join(f'{k}{v}' for k, v in self.shape.items())}"


@dataclass(slots=True)
class Result:
    """What became of one implementation.

    `status`: measured, checked (right, and not timed), refused, unavailable or failed.
    """

    implementation: Implementation
    status: str
    reason: str = ""
    error: float | None = None
    sample: Sample | None = None
    prepared: list[Prepared] = field(default_factory=list)

    def row(self, operation: Operation, shape: Shape, ceilings: Ceilings) -> dict[str, Any]:
        """As a document holds it: seconds, FLOP and bytes a second, share of the ceilings where there is a sample."""
        ours = self.implementation.needs == "triton"
        row: dict[str, Any] = {"backend": self.implementation.name, "ours": ours, "status": self.status}
        row |= {"reason": self.reason} if self.reason else {}
        row |= {"relative_error": self.error} if self.error is not None else {}
        if self.sample is None:
            return row
        flops, bytes_, seconds = operation.flops(shape), operation.bytes(shape), self.sample.median
        row |= {"seconds": self.sample.summary()}
        row |= {"flops_per_s": flops / seconds} if flops else {}
        row |= {"bytes_per_s": bytes_ / seconds} if bytes_ else {}
        return row | ({"share_of_ceiling": ceilings.least_seconds(flops, bytes_) / seconds} if flops or bytes_ else {})


def run_operation(
    operation: Operation, machine: Machine, ceilings: Ceilings, budget_s: float, spent: Collection[str] = ()
) -> dict[str, Any]:
    """Check every implementation, time those that are right, and say what became of the others.

    spent: those that an earlier process lost the device to; they are not tried again. Where one of these loses it, the
    row has the key `lost` with its name ("" if several ran in turn), and this process can use the device no more.
    """
    device = torch.device(machine.kind)
    shape = operation.shape if machine.kind == "cuda" else operation.small
    found = [
        Result(each, "failed", "it left the device unusable") if each.name in spent else Result(each, "waiting")
        for each in operation.implementations
    ]
    good: list[Result] = []
    gone: dict[str, str] = {}
    try:
        good = _right(operation, machine, [f for f in found if f.status == "waiting"])
        if machine.kind == "cuda" and good:
            good = _agreeing(operation, good, device)
        if good:
            _time(operation, shape, good, device, budget_s)
    except DeviceLost as fault:
        gone = {"lost": fault.name}
        _tell(found, fault.name)
    if machine.kind == "cuda" and not gone:
        torch.compiler.reset()  # or the limit of graphs for one function ends in eager calls
    for each in found:
        if each.status == "checked" and each.implementation.needs == "triton" and machine.interpreted:
            each.reason = "right, and not timed: the interpreter's seconds say nothing of a kernel"
        each.prepared = []
    if not gone:
        release()
    return _row(operation, shape, ceilings, found) | _ratios(good) | gone


def _tell(found: Sequence[Result], name: str) -> None:
    """Say of what was not tried, or not timed, to whom the device was lost before."""
    to = name or "one of those that were timed in turn"
    for each in found:
        if each.status == "waiting":
            each.status, each.reason = "failed", f"not tried: the device was lost to {to}"
        elif each.status == "checked":
            each.reason = f"not timed: the device was lost to {to}"


def _row(operation: Operation, shape: Shape, ceilings: Ceilings, found: Sequence[Result]) -> dict[str, Any]:
    return {
        "group": operation.group,
        "name": operation.name,
        "shape": dict(shape),
        "tolerance": TOLERANCE[operation.tolerance],
        "slot": operation.slot,
        "flops": operation.flops(shape),
        "bytes": operation.bytes(shape),
        "backends": [f.row(operation, shape, ceilings) for f in found],
    }


def made(operation: Operation, shape: Shape, seed: int, device: torch.device) -> Tensors:
    """A set of inputs. The default device is set for this alone: while it is, every call of torch's takes longer."""
    with device:
        return operation.inputs(shape, seed)


def _right(operation: Operation, machine: Machine, waiting: Sequence[Result]) -> list[Result]:
    """Check each at the small shape; those that are right and can be timed here."""
    for each in waiting:
        checked = _checked(operation, each.implementation, machine)
        each.status, each.reason, each.error = checked.status, checked.reason, checked.error
        if each.status == "failed" and is_lost(torch.device(machine.kind)):
            raise DeviceLost(each.implementation.name)
    return [
        f for f in waiting if f.status == "checked" and not (f.implementation.needs == "triton" and machine.interpreted)
    ]


def is_lost(device: torch.device) -> bool:
    """Whether a fault took the device with it: after an illegal access every later call of the process fails."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _checked(operation: Operation, implementation: Implementation, machine: Machine) -> Result:
    """At the small shape, against float64."""
    if obstacle := implementation.obstacle(machine):
        return Result(implementation, "unavailable", obstacle)
    try:
        inputs = made(operation, operation.small, 0, torch.device(machine.kind))
        wide = [x.detach().double() if x.is_floating_point() else x for x in inputs]
        expected = as_tensors(operation.expected(*wide))
        found = implementation.read(implementation.prepare(*inputs)())
        error = largest_error(found, expected)
    except Unavailable as fault:
        return Result(implementation, "unavailable", str(fault))
    except (ImportError, NotImplementedError) as fault:
        return Result(implementation, "unavailable", first_line(fault))
    except Exception as fault:  # whatever a library, a compiler or a driver says is this one's result
        return Result(implementation, "failed", first_line(fault))
    if not error <= (bound := implementation.allowed(operation)):
        return Result(implementation, "refused", f"its error is {error:.1e}, and {bound:.0e} is allowed", error)
    return Result(implementation, "checked", error=error)


def _agreeing(operation: Operation, good: Sequence[Result], device: torch.device) -> list[Result]:
    """Those whose results at the timed shape agree with the first one's."""
    inputs = made(operation, operation.shape, 0, device)
    kept: list[Result] = []
    first: Tensors | None = None
    for each in good:
        try:
            result = tuple(t.detach() for t in each.implementation.read(each.implementation.prepare(*inputs)()))
            error = largest_error(result, first) if first is not None else 0.0
        except Exception as fault:
            each.status = "unavailable" if isinstance(fault, Unavailable) else "failed"
            each.reason = str(fault) if isinstance(fault, Unavailable) else first_line(fault)
            if is_lost(device):
                raise DeviceLost(each.implementation.name) from None
            release()
            continue
        bound = each.implementation.allowed(operation) + (kept or [each])[0].implementation.allowed(operation)
        if first is None:
            first = result
        if error <= bound:
            kept.append(each)
        else:
            each.status, each.error = "refused", error
            each.reason = (
                f"at the timed shape it is {error:.1e} from {kept[0].implementation.name}, and {bound:.0e} is allowed"
            )
        del result
    return kept


def _time(operation: Operation, shape: Shape, good: Sequence[Result], device: torch.device, budget_s: float) -> None:
    sets = [made(operation, shape, 0, device)]
    n = n_sets(sum(t.numel() * t.element_size() for t in sets[0]), device)
    sets += [made(operation, shape, seed, device) for seed in range(1, n)]
    fits = True
    for each in good:
        try:
            each.prepared = [each.implementation.prepare(*inputs) for inputs in sets]
        except torch.OutOfMemoryError:
            fits = False
            break
        except Exception as fault:
            each.status, each.reason, each.prepared = "failed", first_line(fault), []
            if is_lost(device):
                raise DeviceLost(each.implementation.name) from None
    ready = ((each.implementation.name, each.prepared) for each in good if each.prepared)
    samples = _in_turn(dict(ready), device, budget_s) if fits else None
    if samples is None:
        samples = _one_by_one(good, sets, device, budget_s)
    for each in good:
        if each.implementation.name in samples:
            each.status, each.sample = "measured", samples[each.implementation.name]


def _in_turn(ready: dict[str, list[Prepared]], device: torch.device, budget_s: float) -> dict[str, Sample] | None:
    """Samples of all together; None where they do not fit together, or one of them fails."""
    try:
        return measure(ready, device, budget_s)
    except Exception:
        if is_lost(device):
            raise DeviceLost("") from None
        return None


def _one_by_one(
    good: Sequence[Result], sets: Sequence[Tensors], device: torch.device, budget_s: float
) -> dict[str, Sample]:
    """Each alone, with its own graphs and nobody else's: whatever was prepared before is let go first."""
    samples: dict[str, Sample] = {}
    waiting = [each for each in good if each.status == "checked"]
    for each in waiting:
        each.prepared = []
    for each in waiting:
        own: dict[str, list[Prepared]] = {}
        release()
        try:
            own = {each.implementation.name: [each.implementation.prepare(*inputs) for inputs in sets]}
            samples |= measure(own, device, budget_s)
        except Exception as fault:
            each.status, each.reason = "failed", first_line(fault)
            if is_lost(device):
                raise DeviceLost(each.implementation.name) from None
    return samples


def _ratios(good: Sequence[Result]) -> dict[str, Any]:
    """How many times as fast as the fastest other implementation ours is."""
    ours = [f.sample.median for f in good if f.sample and f.implementation.needs == "triton"]
    others = [f.sample.median for f in good if f.sample and f.implementation.needs != "triton"]
    return {"ours_against_best_other": min(others) / min(ours)} if ours and others else {}


def as_tensors(result: Any) -> Tensors:
    """A result as a tuple, of one where it is a tensor."""
    return result if isinstance(result, tuple) else (result,)


def largest_error(found: Tensors, expected: Tensors) -> float:
    """Of all results the largest RMS of the difference over RMS of what is expected; NaN and infinities are inf."""
    shapes, wanted = ([tuple(t.shape) for t in tensors] for tensors in (found, expected))
    if shapes != wanted:
        raise ValueError(f"results have shapes {shapes}, not {wanted}")
    return max(_error(f.detach(), e.detach()) for f, e in zip(found, expected, strict=True))


def _error(found: Tensor, expected: Tensor) -> float:
    """In parts, as float64 copies of a large result need not fit."""
    if not expected.numel():
        return 0.0
    difference = scale = 0.0
    for f, e in zip(found.reshape(-1).split(2**26), expected.reshape(-1).split(2**26), strict=True):
        difference += float((f.double() - e.double()).square().sum())
        scale += float(e.double().square().sum())
    error = (difference / max(scale, 1e-300)) ** 0.5
    return error if error == error else float("inf")


def release() -> None:
    """Give memory that nobody refers to back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def first_line(fault: BaseException) -> str:
    """Type and first line of a fault, 200 characters at most."""
    text = str(fault).strip()
    return f"{type(fault).__name__}: {text.splitlines()[0][:200]}" if text else type(fault).__name__
