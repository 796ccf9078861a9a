"""Latent attention's kernels against float64: output, logarithms and all five gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest
import torch
from numerics import DEVICE, assert_close, assert_compiles, each_pair, poisoned, random
from torch import Tensor

from ablate.components.mla.kernel.attention import last_queries, mla_attention, mla_attention_op
from ablate.kernels.table import Configuration, forced

DTYPES = (torch.float32, torch.bfloat16)
NAMES = ("q_nope", "q_rope", "k_nope", "k_rope", "v")
SIZES = ((32, 16, 32), (16, 8, 24))  # position-free, rotated, value
KERNELS = ("forward", "backward_query", "backward_key")


def operands(b: int, t: int, h: int, sizes: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Queries, keys and values as a model has them: slices of what three projections gave."""
    k, p, v = sizes
    q_nope, q_rope = random(b, t, h, k + p, dtype=dtype).split([k, p], -1)
    k_nope, value = random(b, t, h, k + v, dtype=dtype, seed=1).split([k, v], -1)
    k_rope = random(b, t, p + 8, dtype=dtype, seed=2)[..., 8:]
    return q_nope, q_rope, k_nope, k_rope, value


def documents(t: int, *starts: Sequence[int]) -> Tensor:
    """(B, T) int32: of each token the last of these positions that is not after it. One tuple for each sequence."""
    token_T = torch.arange(t)
    rows = [torch.tensor([s for s in own if s < t]) for own in starts]
    return torch.stack([s[(s <= token_T[:, None]).sum(1) - 1] for s in rows]).to(DEVICE, torch.int32)


def expected(inputs: Sequence[Tensor], scale: float, document_BT: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output and base-2 logarithms, with the whole matrix of scores."""
    q_nope, q_rope, k_nope, k_rope, v = inputs
    t = v.shape[1]
    scores = torch.einsum("bthk,bshk->bhts", q_nope, k_nope) + torch.einsum("bthp,bsp->bhts", q_rope, k_rope)
    seen = torch.ones(t, t, dtype=torch.bool, device=v.device).tril()
    if document_BT is not None:
        seen = (seen & (torch.arange(t, device=v.device) >= document_BT[:, :, None]))[:, None]
    scores = (scores * scale).masked_fill(~seen, float("-inf"))
    lse_BHT = scores.logsumexp(-1) / torch.log(torch.tensor(2.0, dtype=torch.float64))
    return torch.einsum("bhts,bshv->bthv", scores.softmax(-1), v), lse_BHT


def check(inputs: Sequence[Tensor], document_BT: Tensor | None = None, g: Tensor | None = None) -> None:
    dtype, scale = inputs[0].dtype, (inputs[0].shape[-1] + inputs[1].shape[-1]) ** -0.5
    inputs = [x.detach().requires_grad_() for x in inputs]
    with poisoned():
        o, lse = mla_attention(*inputs, scale=scale, document_BT=document_BT)
        g = random(*o.shape, dtype=dtype, seed=3) if g is None else g
        found = torch.autograd.grad(o, inputs, g)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    o_expected, lse_expected = expected(wide, scale, document_BT)
    gradients = torch.autograd.grad(o_expected, wide, g.double())
    assert o.dtype == dtype
    assert o.is_contiguous()
    assert not lse.requires_grad
    assert_close(o, o_expected, dtype, "o")
    assert_close(lse, lse_expected, torch.float32, "lse")
    for name, x, a, b in zip(NAMES, inputs, found, gradients, strict=True):
        assert a.dtype == x.dtype
        if inputs[0].shape[1] == 1 and name != "v":  # one key has weight one, whatever its score
            assert a.abs().max() < 1e-6 if dtype == torch.float32 else a.abs().max() < 0.02
            continue
        assert_close(a, b, dtype, f"d{name}")


@contextmanager
def blocks(m: int, n: int) -> Iterator[None]:
    with ExitStack() as stack:
        for kernel in KERNELS:
            stack.enter_context(forced(f"mla_attention_{kernel}", Configuration(blocks={"BLOCK_M": m, "BLOCK_N": n})))
        yield


@each_pair({"t": [1, 63, 129], "heads": [1, 3], "sizes": SIZES, "dtype": DTYPES})
def test_output_and_gradients(t: int, heads: int, sizes: Sequence[int], dtype: torch.dtype) -> None:
    check(operands(2, t, heads, sizes, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "n"), [(32, 16), (16, 32)])
def test_documents(m: int, n: int, dtype: torch.dtype) -> None:
    """Boundaries inside blocks, at their edges and next to them; a document of one token; one that fills blocks."""
    t = 129
    document_BT = documents(t, (0, 31, 32, 33, 64, 128), (0, 5, 100))
    with blocks(m, n):
        check(operands(2, t, 2, SIZES[0], dtype), document_BT)


@pytest.mark.parametrize("starts", [(0,), tuple(range(63)), (0, 62), (0, 16, 32, 48)], ids=len)
def test_one_document_is_no_document_and_each_token_may_be_one(starts: tuple[int, ...]) -> None:
    inputs, document_BT = operands(1, 63, 2, SIZES[0], torch.float32), documents(63, starts)
    o, _ = mla_attention(*inputs, scale=0.2, document_BT=document_BT)
    if len(starts) == 1:
        assert_close(o, mla_attention(*inputs, scale=0.2)[0].double(), torch.float32)
    elif len(starts) == 63:
        assert_close(o, inputs[-1].double(), torch.float32)
    else:
        check(inputs, document_BT)


def test_what_a_document_is_does_not_reach_others() -> None:
    """Each document alone gives what the packed sequence gives."""
    starts, t = (0, 7, 48, 49, 80), 100
    inputs = operands(1, t, 2, SIZES[0], torch.float32)
    packed, _ = mla_attention(*inputs, scale=0.2, document_BT=documents(t, starts))
    for a, b in zip(starts, (*starts[1:], t), strict=True):
        alone, _ = mla_attention(*(x[:, a:b].clone() for x in inputs), scale=0.2)
        assert_close(packed[:, a:b], alone.double(), torch.float32)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("at", [40, 64])
def test_a_later_token_changes_no_bit_of_an_earlier_output(at: int, packed: bool) -> None:
    inputs = operands(1, 100, 2, SIZES[0], torch.bfloat16)
    document_BT = documents(100, (0, 20, 70)) if packed else None
    before, lse_before = mla_attention(*inputs, scale=0.2, document_BT=document_BT)
    changed = [x.clone() for x in inputs]
    for x in changed:
        x[:, at:] = 3 - 2 * x[:, at:]
    after, lse_after = mla_attention(*changed, scale=0.2, document_BT=document_BT)
    assert torch.equal(before[:, :at], after[:, :at])
    assert torch.equal(lse_before[..., :at], lse_after[..., :at])
    assert not torch.equal(before[:, at], after[:, at])


def test_runs_repeat_bit_for_bit() -> None:
    inputs = [x.detach().requires_grad_() for x in operands(2, 63, 3, SIZES[0], torch.bfloat16)]
    g = random(2, 63, 3, 32, dtype=torch.bfloat16, seed=3)
    one, two = (torch.autograd.grad(mla_attention(*inputs, scale=0.2)[0], inputs, g) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_large_scores_do_not_overflow() -> None:
    q_nope, *others = operands(1, 63, 1, SIZES[0], torch.float32)
    o, lse = mla_attention(q_nope * 3000, *others, scale=1.0)
    assert o.isfinite().all()
    assert lse.isfinite().all()


@pytest.mark.parametrize("kind", ["transposed", "expanded", "sliced"])
def test_gradients_of_any_strides(kind: str) -> None:
    whole = random(1, 2, 63, 48, seed=3)
    g = {
        "transposed": whole[..., :32].transpose(1, 2),
        "expanded": whole[:, :1, :1, :1].expand(1, 63, 2, 32),
        "sliced": whole[..., 3:35].transpose(1, 2),
    }[kind]
    check(operands(1, 63, 2, SIZES[0], torch.float32), g=g)


def test_the_operands_may_be_contiguous() -> None:
    check([x.contiguous() for x in operands(2, 33, 2, SIZES[0], torch.float32)])


def test_the_last_query_that_sees_a_key() -> None:
    document_BT = documents(6, (0, 1, 4), (0,))
    assert last_queries(document_BT).tolist() == [[0, 3, 3, 3, 5, 5], [5] * 6]


@pytest.mark.parametrize(("b", "t", "h"), [(0, 5, 2), (2, 0, 2), (2, 5, 0)])
def test_nothing_gives_nothing(b: int, t: int, h: int) -> None:
    inputs = [x.detach().requires_grad_() for x in operands(b, t, h, SIZES[0], torch.float32)]
    with poisoned():
        o, _ = mla_attention(*inputs, scale=0.2)
        o.sum().backward()
    assert o.shape == (b, t, h, 32)
    for x in inputs:
        assert x.grad is not None
        assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("packed", [False, True])
def test_the_operator_is_one_that_compiles(packed: bool) -> None:
    inputs = [x.detach().requires_grad_() for x in operands(1, 20, 2, SIZES[0], torch.float32)]
    document_BT = documents(20, (0, 7)) if packed else None
    torch.library.opcheck(mla_attention_op, (*inputs, 0.2, document_BT))
    assert_compiles(lambda *x: mla_attention(*x, scale=0.2, document_BT=document_BT)[0], *inputs)


def refusals() -> Iterator[tuple[str, dict[int, Tensor], str]]:
    q_nope, q_rope, k_nope, _, v = operands(1, 5, 2, SIZES[0], torch.bfloat16)
    yield "dtype", {0: q_nope.half()}, "q_nope is torch.float16.*must be one of torch.float32, torch.bfloat16"
    yield "mixed dtypes", {4: v.float()}, "v is torch.float32; it must be one of torch.bfloat16"
    yield "axes", {0: q_nope[0]}, r"q_nope has shape \(5, 2, 32\); it must be \(B, T, H, K\)"
    yield "another key", {2: k_nope[:, :4]}, r"k_nope has shape \(1, 4, 2, 32\); it must be \(1, 5, 2, 32\)"
    yield "rotated key of heads", {3: q_rope}, r"k_rope has shape \(1, 5, 2, 16\); it must be \(1, 5, 16\)"
    yield "last axis", {1: q_rope.transpose(1, 3).contiguous().transpose(1, 3)}, "q_rope.*last axis must be contiguous"
    yield "strides", {3: random(1, 5, 20, dtype=torch.bfloat16)[..., :16]}, "k_rope starts at.*multiples of 16"
    yield "start", {3: random(1, 5, 24, dtype=torch.bfloat16)[..., 4:20]}, "k_rope starts at byte 8"
    yield "documents", {6: torch.zeros(1, 4, dtype=torch.int32, device=DEVICE)}, r"document has shape \(1, 4\)"
    yield "numbers of documents", {6: torch.zeros(1, 5, dtype=torch.int64, device=DEVICE)}, "document is torch.int64"


@pytest.mark.parametrize(("changed", "sentence"), [pytest.param(c, s, id=name) for name, c, s in refusals()])
def test_what_is_refused(changed: dict[int, Tensor], sentence: str) -> None:
    given = [*operands(1, 5, 2, SIZES[0], torch.bfloat16), 0.2, None]
    with pytest.raises(ValueError, match=sentence):
        mla_attention_op(*(changed.get(i, x) for i, x in enumerate(given)))


def test_a_scale_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the scale is 0.0; it must be positive"):
        mla_attention(*operands(1, 5, 2, SIZES[0], torch.bfloat16), scale=0.0)
