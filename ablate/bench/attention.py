"""Operations of latent attention: training, from unrotated heads to their output, both passes; and decoding."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ablate.bench.operation import Implementation, Operation, Prepared, Shape, Tensors, Unavailable
from ablate.bench.passes import backward, compiled, expected_backward, forward, random
from ablate.components.mla.attention import attention
from ablate.model.block import Rotation, rotation_table

HEAD = {"K": 128, "P": 64, "V": 128}  # position-free, rotated, value


def operations() -> list[Operation]:
    """Training at three shapes, both passes; decoding at two."""
    shapes = ({"B": 8, "T": 2048, "H": 8}, {"B": 8, "T": 4096, "H": 16}, {"B": 1, "T": 4096, "H": 128})
    training = [_training_operation(shape, pass_) for shape in shapes for pass_ in ("forward", "backward")]
    return [*training, *(_decode_operation(b, heads) for b, heads in ((32, 128), (128, 16)))]


def _training_operation(shape: Shape, pass_: str) -> Operation:
    def inputs(s: Shape, seed: int) -> Tensors:
        table = rotation_table(s["P"], s["T"], 1e4, torch.get_default_device())
        b, t, h = s["B"], s["T"], s["H"]
        return (
            random(b, t, h, s["K"] + s["P"], seed=seed),
            random(b, t, h, s["K"] + s["V"], seed=seed + 1),
            random(b, t, s["P"], seed=seed + 2),
            table.cos_TP,
            table.sin_TP,
            random(b, t, h, s["V"], seed=seed + 3),
        )

    def products(s: Shape) -> float:
        """Causal: a query attends to (T + 1) / 2 keys. Backward 2.5 times: scores again, and two products for each."""
        pairs = s["B"] * s["H"] * s["T"] * (s["T"] + 1) / 2
        qk, v = s["K"] + s["P"], s["V"]
        return 2 * pairs * ((qk + v) if pass_ == "forward" else (3 * qk + 2 * v))

    def prepare(function: Callable[..., Tensor]) -> Callable[..., Prepared]:
        if pass_ == "backward":
            return backward(function, 3)
        return forward(lambda q, kv, key, cos, sin, _: function(q, kv, key, cos, sin))

    exact = _joined(attention)
    return Operation(
        group="attention",
        name=f"latent attention {pass_}",
        shape={**shape, **HEAD},
        small={"B": 2, "T": 130, "H": 2, **HEAD},
        inputs=inputs,
        expected=expected_backward(exact, 3) if pass_ == "backward" else lambda *x: exact(*x[:5]),
        flops=products,
        slot="attention" if shape["B"] * shape["H"] == 64 else "",
        implementations=[
            Implementation(name="assembly + cuDNN", prepare=prepare(_assembled), needs="cuda", fills="cudnn"),
            Implementation(name="library", prepare=prepare(_joined(_torch_choice)), fills="library"),
            Implementation(name="efficient", prepare=prepare(_joined(_pinned("EFFICIENT_ATTENTION"))), needs="cuda"),
            Implementation(name="flash", prepare=prepare(_joined(_pinned("FLASH_ATTENTION"))), needs="cuda"),
            *([Implementation(name="flex", prepare=prepare(_joined(_flex)), needs="cuda")] if shape["H"] == 16 else []),
            Implementation(name="reference", prepare=prepare(_small_only(exact))),
            Implementation(name="triton", prepare=prepare(_ours), needs="triton", fills="triton"),
        ],
    )


def _joined(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Heads put together by torch, the shared key copied to each. -> (B, T, H, V)"""

    def function(q: Tensor, kv: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        p = key.shape[-1]
        nope, rotation = q.shape[-1] - p, Rotation(cos, sin)
        q = torch.cat([q[..., :nope], rotation.rotate(q[..., nope:])], -1)
        shared = rotation.rotate(key[:, :, None]).expand(-1, -1, q.shape[2], -1)
        k = torch.cat([kv[..., :nope], shared], -1)
        heads = (x.transpose(1, 2) for x in (q, k, kv[..., nope:]))
        return attend(*heads, is_causal=True, scale=q.shape[-1] ** -0.5).transpose(1, 2)

    return function


def _torch_choice(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    from ablate.components.mla.attention import library_attention

    return library_attention(q, k, v, **options)


def _pinned(backend: str) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with sdpa_kernel(getattr(SDPBackend, backend)):
            return F.scaled_dot_product_attention(q, k, v, **options)

    return attend


def _flex(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, scale: float) -> Tensor:
    assert is_causal
    attend, mask = _flex_for(q.shape[2], q.device)
    return attend(q, k, v, block_mask=mask, scale=scale)


@cache
def _flex_for(length: int, device: torch.device) -> tuple[Callable[..., Any], Any]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def causal(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return i >= j

    mask = create_block_mask(causal, None, None, length, length, device=device)
    return compiled(flex_attention), mask


def _small_only(exact: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The equations, as long as their scores, which are whole, are no more than 2 GiB."""

    def function(*inputs: Tensor) -> Tensor:
        b, t, h, _ = inputs[0].shape
        if b * h * t * t * inputs[0].element_size() > 2**31:
            raise Unavailable(f"its scores would take {b * h * t * t * inputs[0].element_size() / 2**30:.0f} GiB")
        return exact(*inputs)

    return function


def _assembled(q: Tensor, kv: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    from ablate.components.mla.attention import cudnn_attention
    from ablate.components.mla.kernel.assembly import assemble

    scale = q.shape[-1] ** -0.5
    heads = (x.transpose(1, 2) for x in assemble(q, kv, key, cos, sin, q.shape[-1] - key.shape[-1]))
    return cudnn_attention(*heads, is_causal=True, scale=scale).transpose(1, 2)


def _ours(q: Tensor, kv: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    from ablate.components.mla.kernel.attention import mla_attention
    from ablate.components.mla.kernel.rotate import rotate

    p, scale = key.shape[-1], q.shape[-1] ** -0.5
    nope = q.shape[-1] - p
    k_rope = rotate(key[:, :, None], cos, sin)[:, :, 0]
    q_rope = rotate(q[..., nope:], cos, sin)
    return mla_attention(q[..., :nope], q_rope, kv[..., :nope], k_rope, kv[..., nope:], scale=scale)[0]


def _decode_operation(b: int, heads: int) -> Operation:
    """One new token a sequence against a cache of latents."""

    def inputs(s: Shape, seed: int) -> Tensors:
        sizes = ((1, s["H"], s["R"]), (1, s["H"], s["P"]), (s["S"], s["R"]), (s["S"], s["P"]))
        return tuple(random(s["B"], *size, seed=seed + i) for i, size in enumerate(sizes))

    scale = (HEAD["K"] + HEAD["P"]) ** -0.5

    def plain(q: Tensor, q_rope: Tensor, latent: Tensor, key: Tensor) -> Tensor:
        from ablate.components.mla.module import _decode

        return _decode(q, q_rope, latent, key, latent.shape[1] - 1, scale)

    def library(q: Tensor, q_rope: Tensor, latent: Tensor, key: Tensor) -> Tensor:
        """Latents and keys joined to one head, as torch wants them."""
        joined = torch.cat([latent, key], -1)[:, None]
        query = torch.cat([q, q_rope], -1).transpose(1, 2)
        attended = F.scaled_dot_product_attention(
            query, joined.expand(-1, q.shape[2], -1, -1), latent[:, None].expand(-1, q.shape[2], -1, -1), scale=scale
        )
        return attended.transpose(1, 2)

    def ours(q: Tensor, q_rope: Tensor, latent: Tensor, key: Tensor) -> Tensor:
        from ablate.components.mla.kernel.decode import latent_decode

        return latent_decode(q, q_rope, latent, key, latent.shape[1] - 1, scale)

    return Operation(
        group="attention",
        name="latent decode",
        shape={"B": b, "H": heads, "S": 8192, "R": 512, "P": 64},
        small={"B": 2, "H": 16, "S": 200, "R": 512, "P": 64},
        inputs=inputs,
        expected=plain,
        flops=lambda s: 2.0 * s["B"] * s["H"] * s["S"] * (2 * s["R"] + s["P"]),
        bytes=lambda s: 2.0 * s["B"] * s["S"] * (s["R"] + s["P"]),
        implementations=[
            Implementation(name="reference", prepare=forward(plain)),
            Implementation(name="library", prepare=forward(library)),
            Implementation(name="triton", prepare=forward(ours), needs="triton"),
        ],
    )
