"""The bias's move: the library's, number for number, with loads that no float32 tells apart."""

from __future__ import annotations

import pytest
import torch
from numerics import DEVICE, assert_compiles, poisoned, random
from torch import Tensor

from ablate.components.aux_free.kernel import bias_update, bias_update_op
from ablate.components.aux_free.module import update_bias


def loads(experts: int, low: int, high: int) -> Tensor:
    generator = torch.Generator().manual_seed(experts)
    return torch.randint(low, high, (experts,), generator=generator).to(DEVICE)


@pytest.mark.parametrize("experts", [1, 8, 40, 256, 512])
def test_the_librarys_numbers(experts: int) -> None:
    for counts_E in (loads(experts, 0, 5), loads(experts, 2**40, 2**40 + 5), torch.zeros_like(loads(experts, 0, 1))):
        bias_E = random(experts)
        before_E, expected_E = bias_E.clone(), bias_E.clone()
        update_bias(expected_E, counts_E, 1e-3)
        with poisoned():
            found_E = bias_update(bias_E, counts_E, 1e-3)
        assert torch.equal(found_E, expected_E)
        assert torch.equal(bias_E, before_E)


def test_one_pair_from_the_mean_moves_and_the_mean_itself_does_not() -> None:
    counts_E = torch.tensor([2**50 + 1, 2**50, 2**50 - 1], device=DEVICE)
    assert bias_update(torch.zeros(3, device=DEVICE), counts_E, 0.5).tolist() == [-0.5, 0.0, 0.5]


def test_the_operator_is_one_that_compiles() -> None:
    bias_E, counts_E = random(8), loads(8, 0, 9)
    torch.library.opcheck(bias_update_op, (bias_E, counts_E, 1e-3))
    assert_compiles(lambda bias, counts: bias_update(bias, counts, 1e-3), bias_E, counts_E)


@pytest.mark.parametrize(
    ("bias", "counts", "sentence"),
    [
        (torch.zeros(8, dtype=torch.bfloat16), torch.zeros(8, dtype=torch.int64), "bfloat16; it must be"),
        (torch.zeros(8), torch.zeros(8), "loads is torch.float32; it must be"),
        (torch.zeros(8), torch.zeros(7, dtype=torch.int64), r"shape \(7,\); it must be \(8,\)"),
    ],
)
def test_what_is_refused(bias: Tensor, counts: Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        bias_update_op(bias.to(DEVICE), counts.to(DEVICE), 1e-3)
