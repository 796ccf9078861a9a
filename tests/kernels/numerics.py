"""How kernels are judged: against float64, by the root-mean-square error, with one tolerance for each dtype."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations, product
from typing import Any

import pytest
import torch
from torch import Tensor

from ablate.spec.machine import has_gpu

DEVICE = "cuda" if has_gpu() else "cpu"
# Else cuBLAS refuses every product under deterministic algorithms, which `poisoned` turns on.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# Root-mean-square error over root-mean-square of the reference. The only tolerances of kernel tests.
TOLERANCE = {
    torch.float32: 2e-6,
    torch.bfloat16: 6e-3,  # a few roundings of 2^-9 each
    torch.float8_e4m3fn: 4e-2,  # against unquantised float64; against the same quantised numbers it is float32's
}
SIZES = (1, 63, 100, 129, 257)


def each_pair(axes: Mapping[str, Sequence[Any]], ids: Callable[[Any], str] = str) -> pytest.MarkDecorator:
    """Parametrise so that any two values of two axes meet in a case. The other combinations are slow; a GPU runs all.

    axes: names of arguments, as of pytest's parametrize -> values.
    """
    chosen = set(covering([len(values) for values in axes.values()]))
    cases = []
    for places in product(*(range(len(values)) for values in axes.values())):
        values = [axis[place] for axis, place in zip(axes.values(), places, strict=True)]
        flat = [one for name, v in zip(axes, values, strict=True) for one in (v if "," in name else (v,))]
        marks = () if DEVICE == "cuda" or places in chosen else pytest.mark.slow
        cases.append(pytest.param(*flat, id="-".join(map(ids, flat)), marks=marks))
    return pytest.mark.parametrize(", ".join(axes), cases)


def covering(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Places on axes of these sizes, few of them, such that any two places of two axes are together in one."""
    cases = list(product(*map(range, sizes)))
    missing, found = set[Any]().union(*map(_pairs, cases)), []
    while missing:
        found.append(max(cases, key=lambda case: len(missing & _pairs(case))))
        missing -= _pairs(found[-1])
    return found


def _pairs(case: tuple[int, ...]) -> set[Any]:
    return set(combinations(enumerate(case), 2))


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal numbers on the device under test, rounded to dtype."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(DEVICE, dtype)


def error(found: Tensor, expected: Tensor) -> float:
    """RMS of the difference over RMS of what is expected; NaN in what was found is inf. Empty tensors agree."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    if not expected.numel():
        return 0.0
    difference = found.detach().double().cpu() - expected.detach().double().cpu()
    if not difference.isfinite().all():
        return float("inf")
    return float(difference.norm() / expected.detach().double().cpu().norm().clamp_min(1e-30))


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype, name: str = "") -> None:
    """`expected`: from a float64 reference. `dtype`: the least precise format on the way."""
    assert (got := error(found, expected)) <= TOLERANCE[dtype], f"{name}: error {got:.2e} over {TOLERANCE[dtype]:.0e}"


@contextmanager
def poisoned() -> Iterator[None]:
    """Inside, memory that nobody has written reads NaN (largest number of an integer): an unwritten output shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def strided(x: Tensor) -> Tensor:
    """The same numbers as rows of a wider tensor: not contiguous, the last axis is, strides are multiples of 16 B."""
    wide = x.new_empty(*x.shape[:-1], x.shape[-1] + 16)
    view = wide[..., : x.shape[-1]]
    view.copy_(x)
    return view


def assert_compiles(function: Callable[..., Tensor], *arguments: Tensor) -> None:
    """torch.compile takes it in one graph, forward and backward, and the numbers are the same."""
    wanted = [a for a in arguments if a.requires_grad]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = []
    for each in (function, compiled):
        y = each(*arguments)
        results.append([y, *torch.autograd.grad(y, wanted, torch.ones_like(y))] if wanted else [y])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
