"""Rotation, and the assembly of queries and keys, against float64: outputs and every gradient."""

from __future__ import annotations

import pytest
import torch
from numerics import DEVICE, assert_close, assert_compiles, each_pair, poisoned, random, strided
from torch import Tensor

from ablate.components.mla.kernel.assembly import assemble, assemble_backward_op, assemble_op
from ablate.components.mla.kernel.rotate import rotate, rotate_op
from ablate.kernels.table import Configuration, forced
from ablate.model.block import rotation_table

DTYPES = (torch.float32, torch.bfloat16)


def tables(length: int, rope: int) -> tuple[Tensor, Tensor]:
    """From a later position on, so that no angle is zero; a slice of a longer table, as decoding takes it."""
    rotation = rotation_table(rope, length + 5, 10000.0, DEVICE).positions(5, length)
    return rotation.cos_TP, rotation.sin_TP


def rotated(x_BTHP: Tensor, cos_TP: Tensor, sin_TP: Tensor) -> Tensor:
    """Each pair as a complex number times exp(i angle)."""
    half = x_BTHP.shape[-1] // 2
    turned = torch.complex(x_BTHP[..., :half], x_BTHP[..., half:]) * torch.complex(cos_TP, sin_TP)[:, None]
    return torch.cat([turned.real, turned.imag], -1)


def assembled(q: Tensor, kv: Tensor, key: Tensor, cos: Tensor, sin: Tensor, nope: int) -> tuple[Tensor, ...]:
    shared = rotated(key[:, :, None], cos, sin).expand(-1, -1, q.shape[2], -1)
    k = torch.cat([kv[..., :nope], shared], -1)
    return torch.cat([q[..., :nope], rotated(q[..., nope:], cos, sin)], -1), k, kv[..., nope:]


def wide(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().double().requires_grad_(t.requires_grad) for t in tensors]


@each_pair({"length": [1, 63, 129], "heads, rope": [(1, 8), (3, 6), (3, 40), (5, 2)], "dtype": DTYPES})
def test_rotation_and_its_gradient(length: int, heads: int, rope: int, dtype: torch.dtype) -> None:
    projected = random(2, length, heads, 16 + rope, dtype=dtype).requires_grad_()
    g = random(2, length, heads, rope, dtype=dtype, seed=1)
    angles = tables(length, rope)
    with poisoned():
        y = rotate(projected[..., 16:], *angles)
        (found,) = torch.autograd.grad(y, projected, g)
    (q,) = wide(projected)
    expected = rotated(q[..., 16:], *wide(*angles))
    assert y.dtype == dtype
    assert y.is_contiguous()
    assert_close(y, expected, dtype, "y")
    (wanted,) = torch.autograd.grad(expected, q, g.double())
    assert_close(found, wanted, dtype, "x")


def test_rotation_of_the_shared_key_where_it_lies() -> None:
    down, angles = random(2, 63, 48), tables(63, 8)
    key = down[..., 40:].unsqueeze(2)
    assert_close(rotate(key, *angles), rotated(*wide(key, *angles)), torch.float32)


def test_rotation_and_turning_back_is_the_input() -> None:
    x, angles = random(2, 33, 3, 8), tables(33, 8)
    assert_close(rotate_op(rotate_op(x, *angles, False), *angles, True), x, torch.float32)


def test_rotation_rounds_once() -> None:
    x, angles = random(1, 63, 3, 64, dtype=torch.bfloat16), tables(63, 64)
    expected = rotated(*(t.float() for t in (x, *angles))).bfloat16()
    assert (rotate(x, *angles) != expected).double().mean() < 1e-3  # ties of a float32 rounding besides


@each_pair(
    {
        "length": [1, 63, 129],
        "heads, nope, rope, values": [(1, 16, 8, 16), (3, 20, 6, 12), (3, 9, 2, 33)],
        "dtype": DTYPES,
    }
)
def test_assembly_and_its_gradients(
    length: int, heads: int, nope: int, rope: int, values: int, dtype: torch.dtype
) -> None:
    q = random(2, length, heads, nope + rope, dtype=dtype)
    kv = random(2, length, heads, nope + values, dtype=dtype, seed=1)
    check(q, kv, random(2, length, rope, dtype=dtype, seed=2), nope, dtype)


def test_assembly_of_parts_of_wider_tensors() -> None:
    """Strides of every axis, and the key where the down projection left it."""
    q = strided(random(2, 3, 33, 24)).transpose(1, 2)
    kv = strided(random(33, 2, 3, 28, seed=1)).transpose(0, 1)
    check(q, kv, random(2, 33, 48, seed=2)[..., 40:], 16, torch.float32)


def test_many_heads_in_several_blocks_sum_to_one_gradient() -> None:
    blocks = Configuration(blocks={"TOKENS": 2, "HEADS": 4})
    with forced("mla_assemble_forward", blocks), forced("mla_assemble_backward", blocks):
        check(random(1, 5, 13, 24), random(1, 5, 13, 32, seed=1), random(1, 5, 8, seed=2), 16, torch.float32)


def check(q: Tensor, kv: Tensor, key: Tensor, nope: int, dtype: torch.dtype) -> None:
    q, kv, key = (t.detach().requires_grad_() for t in (q, kv, key))
    angles = tables(q.shape[1], key.shape[-1])
    with poisoned():
        found = assemble(q, kv, key, *angles, nope)
        # As attention's backward pass leaves them: (B, H, T, K), seen as (B, T, H, K).
        shapes = [(y.shape[0], y.shape[2], y.shape[1], y.shape[3]) for y in found]
        gradients = [random(*s, dtype=dtype, seed=3 + i).transpose(1, 2) for i, s in enumerate(shapes)]
        backward = torch.autograd.grad(found, (q, kv, key), gradients)
    exact_q, exact_kv, exact_key, cos, sin = wide(q, kv, key, *angles)
    expected = assembled(exact_q, exact_kv, exact_key, cos, sin, nope)
    for name, a, b in zip("qkv", found, expected, strict=True):
        assert a.dtype == dtype
        assert a.is_contiguous()
        assert_close(a, b, dtype, name)
    wanted = torch.autograd.grad(expected, (exact_q, exact_kv, exact_key), [g.double() for g in gradients])
    for name, a, b in zip(("dq", "dkv", "dkey"), backward, wanted, strict=True):
        assert a.dtype == dtype
        assert_close(a, b, dtype, name)


def test_what_is_only_copied_is_copied_bit_for_bit() -> None:
    q, kv, key = random(1, 33, 3, 24), random(1, 33, 3, 32, seed=1), random(1, 33, 8, seed=2)
    found_q, found_k, found_v = assemble(q, kv, key, *tables(33, 8), 16)
    assert torch.equal(found_q[..., :16], q[..., :16])
    assert torch.equal(found_k[..., :16], kv[..., :16])
    assert torch.equal(found_v, kv[..., 16:])
    assert torch.equal(found_k[:, :, 0, 16:], found_k[:, :, 2, 16:])


def test_a_loss_of_queries_alone() -> None:
    """Gradients that autograd does not have are zero."""
    q, kv = random(1, 5, 2, 24).requires_grad_(), random(1, 5, 2, 32, seed=1).requires_grad_()
    key = random(1, 5, 8, seed=2).requires_grad_()
    assemble(q, kv, key, *tables(5, 8), 16)[0].sum().backward()
    assert kv.grad is not None
    assert key.grad is not None
    assert not kv.grad.any()
    assert not key.grad.any()


def test_nothing_to_assemble() -> None:
    q, kv, key = (torch.empty(0, 5, *s, device=DEVICE) for s in ((2, 24), (2, 32), (8,)))
    assert [y.shape[0] for y in assemble(q, kv, key, *tables(5, 8), 16)] == [0, 0, 0]
    assert rotate(q, *tables(5, 24)).shape == (0, 5, 2, 24)


def test_the_operators_are_ones_that_compile() -> None:
    q, kv = random(2, 5, 2, 24).requires_grad_(), random(2, 5, 2, 32, seed=1).requires_grad_()
    key, angles = random(2, 5, 8, seed=2).requires_grad_(), tables(5, 8)
    torch.library.opcheck(assemble_op, (q, kv, key, *angles, 16))
    torch.library.opcheck(assemble_backward_op, (q.detach(), q.detach(), kv.detach()[..., 16:], *angles))
    torch.library.opcheck(rotate_op, (q[..., 16:].detach().requires_grad_(), *angles, False))
    assert_compiles(lambda a, b, c: torch.cat(assemble(a, b, c, *angles, 16), -1).square(), q, kv, key)
    assert_compiles(lambda x: rotate(x[..., 16:], *angles).square(), q)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"q": torch.zeros(2, 5, 2, 24, dtype=torch.float16)}, "queries is torch.float16; it must be one of"),
        ({"q": torch.zeros(2, 5, 24, 2).transpose(2, 3)}, "queries has strides.*last axis must be contiguous"),
        ({"kv": torch.zeros(2, 5, 3, 32)}, r"keys and values has shape .*must be \(2, 5, 2, 32\)"),
        ({"kv": torch.zeros(2, 5, 2, 16)}, "16 of 16 channels are keys"),
        ({"kv": torch.zeros(2, 5, 2, 32).bfloat16()}, "keys and values is torch.bfloat16"),
        ({"key": torch.zeros(2, 5, 6)}, r"shared key has shape .*must be \(2, 5, 8\)"),
        ({"cos": torch.zeros(5, 4).double()}, "table of cosines is torch.float64"),
        ({"sin": torch.zeros(6, 4)}, r"table of sines has shape \(6, 4\).*must be \(5, 4\)"),
        ({"sin": torch.zeros(5, 8)[:, :4]}, "table of sines has strides.*must be contiguous"),
    ],
)
def test_what_is_refused(changed: dict[str, Tensor], sentence: str) -> None:
    given = {"q": torch.zeros(2, 5, 2, 24), "kv": torch.zeros(2, 5, 2, 32), "key": torch.zeros(2, 5, 8)}
    given |= {"cos": torch.zeros(5, 4), "sin": torch.zeros(5, 4), **changed}
    with pytest.raises(ValueError, match=sentence):
        assemble_op(*(t.to(DEVICE) for t in given.values()), 16)


def test_an_odd_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="7 channels; they are turned in pairs"):
        rotate(torch.zeros(1, 2, 1, 7, device=DEVICE), *(torch.zeros(2, 3, device=DEVICE) for _ in range(2)))
