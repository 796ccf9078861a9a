"""Checks of what operators are given, and gradients as rows that kernels read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ablate.kernels.operands import (
    aligned_rows,
    check_aligned,
    check_contiguous,
    check_offsets,
    check_row_numbers,
    check_rows,
    check_shape,
    contiguous_rows,
)


def gradient(shape: tuple[int, ...], strides: tuple[int, ...], start: int = 0) -> Tensor:
    return torch.arange(2000, dtype=torch.float32).to(torch.bfloat16).as_strided(shape, strides, start)


def test_checks_say_what_is_wrong() -> None:
    x = torch.zeros(4, 24, dtype=torch.bfloat16)
    check_rows("x", x[:, :16], [torch.bfloat16], 2)
    check_aligned("x", x[:, 8:])
    check_row_numbers("rows", None)
    for check, sentence in (
        (lambda: check_rows("x", x.float(), [torch.bfloat16]), "x is torch.float32; it must be one of"),
        (lambda: check_rows("x", x.T, [torch.bfloat16]), "x has strides.*last axis must be contiguous"),
        (lambda: check_rows("x", x[0], [torch.bfloat16], 2), "must have 2 axes"),
        (lambda: check_contiguous("x", x[:, :16]), "x has strides.*it must be contiguous"),
        (lambda: check_aligned("x", x[:, 1:]), "x starts at byte 2 modulo 16"),
        (lambda: check_aligned("x", torch.zeros(4, 20, dtype=torch.bfloat16)), r"strides of \[40\] bytes"),
        (lambda: check_shape("x", x, (4, 16)), r"shape \(4, 24\); it must be \(4, 16\)"),
        (lambda: check_offsets(torch.zeros(3, dtype=torch.int64), 3), "offsets_E is torch.int64"),
        (lambda: check_offsets(torch.zeros(3, dtype=torch.int32), 4), r"offsets_E has shape \(3,\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            check()


@pytest.mark.parametrize(
    ("shape", "strides", "start", "copied"),
    [
        ((4, 16), (16, 1), 0, (False, False)),
        ((4, 16), (24, 1), 8, (False, False)),  # a slice of wider rows
        ((4, 16), (20, 1), 0, (False, True)),  # rows out of step with 16 bytes
        ((4, 16), (16, 1), 4, (False, True)),  # a start that is
        ((4, 16), (0, 1), 0, (False, True)),  # expanded along the rows
        ((4, 16), (8, 1), 0, (False, True)),  # rows that overlap
        ((4, 16), (1, 4), 0, (True, True)),  # transposed
        ((4, 16), (0, 0), 0, (True, True)),  # the gradient of a sum
        ((0, 16), (0, 0), 0, (True, True)),  # contiguous() would leave these strides
        ((4, 1), (1, 3), 0, (False, True)),
        ((2, 1, 3, 16), (64, 7, 16, 1), 0, (False, False)),  # an axis of one leads nowhere
    ],
)
def test_a_gradient_is_copied_only_where_it_cannot_be_read(
    shape: tuple[int, ...], strides: tuple[int, ...], start: int, copied: tuple[bool, bool]
) -> None:
    g = gradient(shape, strides, start)
    for rows, expected in zip((contiguous_rows, aligned_rows), copied, strict=True):
        found = rows(g)
        assert (found is not g) == expected
        assert torch.equal(found, g)
        check_rows("the gradient", found, [torch.bfloat16])
