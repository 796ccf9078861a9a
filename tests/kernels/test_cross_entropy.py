"""The head with its cross-entropy against float64: the loss and both gradients, whole and in chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from numerics import DEVICE, assert_close, assert_compiles, each_pair, poisoned, random, strided
from torch.nn import functional as F

from ablate.kernels import cross_entropy
from ablate.kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_op, tokens_at_once

DTYPES = (torch.float32, torch.bfloat16)
IGNORED = -100


def targets_of(n: int, n_classes: int, ignored: bool = True) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(n_classes, (n,), generator=generator)
    targets[0], targets[-1] = 0, n_classes - 1  # the ends of the blocks
    if ignored:
        targets[1::5] = IGNORED
    return targets.to(DEVICE)


def check(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype, factor: float = 0.3
) -> None:
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    with poisoned():
        loss = linear_cross_entropy(hidden, weight, targets)
        found = torch.autograd.grad(factor * loss, (hidden, weight))
    wide = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    expected = F.cross_entropy(wide[0] @ wide[1].T, targets)
    assert loss.dtype == torch.float32
    assert_close(loss, expected, dtype, "loss")
    wanted = torch.autograd.grad(factor * expected, wide)
    for name, mine, reference, given in zip(("hidden", "weight"), found, wanted, (hidden, weight), strict=True):
        assert mine.dtype == given.dtype
        assert_close(mine, reference, dtype, name)


@each_pair({"n": [1, 63, 257], "n_classes": [100, 257, 1000], "dtype": DTYPES})
def test_loss_and_gradients(n: int, n_classes: int, dtype: torch.dtype) -> None:
    weight = random(n_classes, 48, dtype=dtype, seed=1, scale=0.2)
    check(random(n, 48, dtype=dtype), weight, targets_of(n, n_classes), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chunks_are_one_sum(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "LOGITS_BYTES", 0)
    assert tokens_at_once(300, 100, 2) == 128
    weight = random(100, 48, dtype=dtype, seed=1, scale=0.2)
    check(random(300, 48, dtype=dtype), weight, targets_of(300, 100), dtype)


def test_float32_weight_under_bfloat16() -> None:
    weight = random(100, 48, dtype=torch.bfloat16, seed=1, scale=0.2).float()
    check(random(63, 48, dtype=torch.bfloat16), weight, targets_of(63, 100), torch.bfloat16)


def test_rows_of_wider_tensors() -> None:
    hidden, weight = strided(random(33, 48)), strided(random(100, 48, seed=1))
    assert not hidden.is_contiguous()
    check(hidden, weight, targets_of(33, 100), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_logits_stay_finite(dtype: torch.dtype) -> None:
    """Logits of +-80 and beyond, exact in bfloat16: without the maximum, exp overflows."""
    hidden = torch.eye(8, device=DEVICE, dtype=dtype)[:5] * 16
    weight = (torch.arange(300 * 8, device=DEVICE).reshape(300, 8) % 41 - 20).to(dtype)
    check(hidden, weight, targets_of(5, 300), dtype)


def test_minus_infinite_logits_have_no_share() -> None:
    weight = torch.tensor([[0.0], [float("-inf")], [1.0]], device=DEVICE)
    hidden = torch.ones(2, 1, device=DEVICE)
    targets = torch.tensor([0, 2], device=DEVICE)
    loss = linear_cross_entropy(hidden, weight, targets)
    assert_close(loss, F.cross_entropy((hidden @ weight.T).double(), targets), torch.float32)


def test_two_heads_share_one_weight() -> None:
    weight = random(100, 32, seed=1, scale=0.2).requires_grad_()
    main, draft = random(40, 32, seed=4), random(40, 32, seed=5)
    targets = targets_of(40, 100)
    with poisoned():
        loss = linear_cross_entropy(main, weight, targets) + 0.3 * linear_cross_entropy(draft, weight, targets)
        loss.backward()
    wide = weight.detach().double().requires_grad_()
    parts = [F.cross_entropy(hidden.double() @ wide.T, targets) for hidden in (main, draft)]
    assert weight.grad is not None
    assert_close(weight.grad, torch.autograd.grad(parts[0] + 0.3 * parts[1], wide)[0], torch.float32)


def test_only_one_gradient_is_wanted() -> None:
    hidden, weight, targets = random(9, 16), random(100, 16, seed=1), targets_of(9, 100)
    for one in (hidden, weight):
        one.requires_grad_()
        assert torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), one)[0].isfinite().all()
        one.requires_grad_(False)


def test_without_gradients_nothing_is_kept() -> None:
    hidden, weight, targets = random(9, 16), random(100, 16, seed=1).requires_grad_(), targets_of(9, 100)
    with poisoned(), torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, targets)
        assert [t.numel() for t in linear_cross_entropy_op(hidden, weight, targets, IGNORED, False)[2:]] == [0, 0]
    assert_close(loss, F.cross_entropy(hidden.double() @ weight.double().T, targets), torch.float32)


@pytest.mark.parametrize("n", [0, 5])
def test_no_target_counts(n: int) -> None:
    """NaN, and gradients of zero: as F.cross_entropy."""
    hidden, weight = random(n, 16).requires_grad_(), random(20, 16, seed=1).requires_grad_()
    targets = torch.full((n,), IGNORED, device=DEVICE)
    with poisoned():
        loss = linear_cross_entropy(hidden, weight, targets)
        found = torch.autograd.grad(loss, (hidden, weight))
    assert loss.isnan()
    assert all(torch.equal(g, torch.zeros_like(g)) for g in found)


def test_a_target_that_is_no_class_is_seen() -> None:
    targets = torch.tensor([3, 20], device=DEVICE)
    assert linear_cross_entropy(random(2, 16), random(20, 16, seed=1), targets).isnan()
    targets[1] = 7
    assert linear_cross_entropy(random(2, 16), random(20, 16, seed=1), targets).isfinite()
    assert linear_cross_entropy(random(2, 16), random(20, 16, seed=1), targets, ignore_index=7).isfinite()


def test_the_same_twice_and_more_axes() -> None:
    hidden, weight = random(2, 30, 16).requires_grad_(), random(100, 16, seed=1).requires_grad_()
    targets = targets_of(60, 100).view(2, 30)
    first, second = (
        torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), (hidden, weight)) for _ in range(2)
    )
    assert first[0].shape == hidden.shape
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_operator_is_one_that_compiles() -> None:
    hidden, weight, targets = random(5, 8).requires_grad_(), random(20, 8, seed=1).requires_grad_(), targets_of(5, 20)
    torch.library.opcheck(linear_cross_entropy_op, (hidden.detach(), weight.detach(), targets, IGNORED, True))
    torch.library.opcheck(linear_cross_entropy_op, (hidden, weight, targets, IGNORED, True))
    assert_compiles(lambda h, w, t: linear_cross_entropy(h, w, t) * 0.3, hidden, weight, targets)
    assert_compiles(linear_cross_entropy, hidden.detach(), weight.detach(), targets)


@pytest.mark.parametrize(("n", "n_classes", "bytes_", "tokens"), [
    (4096, 129280, 2, 4096), (8192, 129280, 2, 4096), (8193, 129280, 2, 2816), (16384, 32768, 2, 8192),
    (100, 1000, 4, 128), (10**6, 2**18, 4, 1024), (0, 1000, 2, 128),
])  # fmt: skip
def test_chunks_are_large_and_equal(n: int, n_classes: int, bytes_: int, tokens: int) -> None:
    assert tokens_at_once(n, n_classes, bytes_) == tokens
    assert tokens * n_classes * bytes_ <= cross_entropy.LOGITS_BYTES


@pytest.mark.parametrize(
    ("hidden", "weight", "targets", "sentence"),
    [
        (torch.zeros(2, 8, dtype=torch.float16), torch.ones(9, 8), torch.zeros(2).long(), "float16.*must be one of"),
        (torch.zeros(2, 8), torch.ones(9, 7), torch.zeros(2).long(), r"weight has shape \(9, 7\).*must be \(9, 8\)"),
        (torch.zeros(2, 8), torch.ones(9, 8), torch.zeros(3).long(), r"targets has shape \(3,\).*must be \(2,\)"),
        (torch.zeros(2, 8), torch.ones(9, 8), torch.zeros(2).int(), "int32.*must be one of"),
        (torch.zeros(2, 8), torch.ones(8, 9).T, torch.zeros(2).long(), "last axis must be contiguous"),
    ],
)
def test_what_is_refused(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        linear_cross_entropy_op(hidden.to(DEVICE), weight.to(DEVICE), targets.to(DEVICE), IGNORED, False)


@pytest.mark.parametrize(
    ("fault", "answer"),
    [
        (None, True),
        (RuntimeError("self must have the dtype of the matrices"), False),
        (RuntimeError("Deterministic behavior was enabled, and CUBLAS_WORKSPACE_CONFIG is not set"), None),
        (torch.OutOfMemoryError("CUDA out of memory"), None),
    ],
)
def test_only_a_refusal_of_the_dtypes_is_remembered(
    monkeypatch: pytest.MonkeyPatch, fault: Exception | None, answer: bool | None
) -> None:
    asked = []

    def addmm(*_: Any, **__: Any) -> None:
        asked.append(1)
        if fault is not None:
            raise fault

    monkeypatch.setattr(torch, "addmm", addmm)
    cross_entropy._adds_to_float32.cache_clear()
    try:
        for _ in range(2):
            if answer is None:
                with pytest.raises(RuntimeError, match=str(fault)):
                    cross_entropy._adds_to_float32(torch.device("cpu"))
            else:
                assert cross_entropy._adds_to_float32(torch.device("cpu")) is answer
        assert len(asked) == (2 if answer is None else 1)
    finally:
        cross_entropy._adds_to_float32.cache_clear()
