"""Latent attention: the paper's equations, the absorbed form, the cache; grouped-query attention and its ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from variants import FULL, NANO, on_torch, spec_of

from ablate.components.mla.attention import attention
from ablate.components.mla.kernel.rotate import rotate as kernel_rotate
from ablate.components.mla.reference import latent_attention
from ablate.components.mla.spec import GroupedQueryAttention, LatentAttention
from ablate.components.variants import Variant
from ablate.model.block import ModelContext, rotation_table
from ablate.model.transformer import build
from ablate.presets import preset
from ablate.spec.cost import BF16_BYTES

DIM, EPS, THETA, T = 24, 1e-6, 10000.0, 13
LATENT = LatentAttention(
    n_heads=3,
    q_lora_rank=10,
    kv_lora_rank=12,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=6,
    backend="library",
)
GROUPED = GroupedQueryAttention(n_heads=4, n_kv_heads=2, head_dim=6, backend="library")
QUERY_KEY_VALUE = ("q.weight", "k.weight", "v.weight")
MODEL = on_torch(NANO.model)
CONTEXT = ModelContext(replace(MODEL, dim=DIM, norm=replace(MODEL.norm, eps=EPS)))


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def module_of(node: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    module = node.build(CONTEXT)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return module


def inputs(batch: int = 2, length: int = T, seed: int = 1) -> Tensor:
    return torch.randn(batch, length, DIM, generator=torch.Generator().manual_seed(seed))


def table(node: Any, length: int = T) -> Any:
    return rotation_table(node.rope_dim, length, THETA)


@pytest.mark.parametrize("backend", ["library", "reference"])
@pytest.mark.parametrize("q_lora_rank", [10, 0])
def test_latent_attention_is_the_papers(backend: Any, q_lora_rank: int) -> None:
    node = replace(LATENT, backend=backend, q_lora_rank=q_lora_rank)
    module, x_BTD = module_of(node), inputs()
    weights = dict(module.named_parameters())
    got = module(x_BTD, table(node))
    for x_TD, y_TD in zip(x_BTD, got, strict=True):
        expected = latent_attention(node, weights, x_TD, table(node), EPS)
        torch.testing.assert_close(y_TD, expected, rtol=1e-10, atol=1e-10)


def test_gradients_are_those_of_the_papers_equations() -> None:
    module, x_BTD = module_of(LATENT), inputs(batch=1)
    weights = dict(module.named_parameters())
    g = torch.randn(T, DIM)
    got = torch.autograd.grad((module(x_BTD, table(LATENT))[0] * g).sum(), list(weights.values()))
    plain = (latent_attention(LATENT, weights, x_BTD[0], table(LATENT), EPS) * g).sum()
    for name, a, b in zip(weights, got, torch.autograd.grad(plain, list(weights.values())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


def test_latent_attention_by_its_own_loop() -> None:
    """Scores and values of one head written out, so that the reference itself is checked."""
    module, x_BTD, node = module_of(LATENT), inputs(batch=1), LATENT
    w = {name: p.detach() for name, p in module.named_parameters()}
    n, p, v = node.qk_nope_head_dim, node.qk_rope_head_dim, node.v_head_dim

    def rms(x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean() + EPS) * weight

    def turned(x: Tensor, position: int) -> Tensor:
        y = x.clone()
        for i in range(p // 2):
            angle = torch.tensor(position * THETA ** (-2 * i / p))
            a, b = x[i], x[i + p // 2]
            y[i], y[i + p // 2] = a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()
        return y

    downs = [w["kv_down.weight"] @ x for x in x_BTD[0]]
    latents = [rms(d[: node.kv_lora_rank], w["kv_norm.weight"]) for d in downs]
    rope_keys = [turned(d[node.kv_lora_rank :], t) for t, d in enumerate(downs)]
    t, outputs = T - 1, []
    query = w["q_up.weight"] @ rms(w["q_down.weight"] @ x_BTD[0, t], w["q_norm.weight"])
    for head in range(node.n_heads):
        q = query[head * (n + p) : (head + 1) * (n + p)]
        up = w["kv_up.weight"][head * (n + v) : (head + 1) * (n + v)]
        scores = [
            (q[:n] @ (up[:n] @ latents[s]) + turned(q[n:], t) @ rope_keys[s]) / (n + p) ** 0.5 for s in range(t + 1)
        ]
        weight = torch.stack(scores).softmax(0)
        outputs.append(sum(weight[s] * (up[n:] @ latents[s]) for s in range(t + 1)))
    expected = w["output.weight"] @ torch.cat(outputs)
    torch.testing.assert_close(module(x_BTD, table(node))[0, t], expected, rtol=1e-10, atol=1e-10)


def test_the_scale_is_that_of_the_joined_head() -> None:
    assert module_of(LATENT).scale == (8 + 4) ** -0.5


@pytest.mark.parametrize(
    "node", [LATENT, replace(LATENT, q_lora_rank=0), GROUPED], ids=["mla", "mla, no q rank", "gqa"]
)
@pytest.mark.parametrize("steps", [[T], [1] * T, [5, 1, 1, 6]], ids=["at once", "one by one", "in pieces"])
def test_decoding_is_the_forward_pass(node: Any, steps: list[int]) -> None:
    """For latent attention: the absorbed form equals the expanded one."""
    module, x_BTD, rotation = module_of(node), inputs(), table(node)
    cache, parts, start = module.new_cache(2, T), [], 0
    with torch.no_grad():
        for length in steps:
            x = x_BTD[:, start : start + length]
            parts.append(module.decode(x, rotation.positions(start, length), cache))
            start += length
        expected = module(x_BTD, rotation)
    assert cache.length == T
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("node", [LATENT, GROUPED], ids=["mla", "gqa"])
def test_decoding_beyond_the_cache_is_an_error_and_nothing_is_lost(node: Any) -> None:
    module, x_BTD, rotation = module_of(node), inputs(), table(node)
    cache = module.new_cache(2, 8)
    with torch.no_grad():
        module.decode(x_BTD[:, :7], rotation.positions(0, 7), cache)
        for x in (x_BTD[:, 7:9], x_BTD[:1, 7:8]):  # too many tokens, too few sequences
            with pytest.raises(ValueError, match=r"behind 7 do not fit a cache of 2 x 8"):
                module.decode(x, rotation.positions(7, x.shape[1]), cache)
        last = module.decode(x_BTD[:, 7:8], rotation.positions(7, 1), cache)
        with pytest.raises(ValueError, match="1 tokens behind 8 do not fit"):
            module.decode(x_BTD[:, 8:9], rotation.positions(8, 1), cache)
    torch.testing.assert_close(last, module(x_BTD, rotation)[:, 7:8], rtol=1e-9, atol=1e-9)


def test_rotation_is_float32_and_rounded_once_by_every_backend() -> None:
    torch.set_default_dtype(torch.float32)
    rotation = rotation_table(16, 3000, THETA).positions(2000, 1000)
    x_BTHP = torch.randn(1, 1000, 2, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = rotation.rotate(x_BTHP.float())
    assert torch.equal(rotation.rotate(x_BTHP), exact.bfloat16())
    assert torch.equal(kernel_rotate(x_BTHP, rotation.cos_TP, rotation.sin_TP), exact.bfloat16())


@pytest.mark.parametrize("level", ["on", "gqa", "mha", "mqa"])
def test_the_cache_holds_what_the_closed_form_says(level: str) -> None:
    model = build(spec_of(FULL | {"mla": level}).model, seed=0).to(torch.bfloat16)
    caches = model.new_cache(1, 7)
    cost = model.spec.cost(32)
    held = [tensor for cache in caches for tensor in cache.kept]
    assert sum(t.numel() for t in held) == 7 * cost.main.kv_cache_elements
    assert sum(t.numel() * t.element_size() for t in held) == 7 * cost.main.kv_cache_elements * BF16_BYTES


def test_the_cache_of_deepseek_v3() -> None:
    large = preset("v3-671b")
    summary = Variant.full(large).resolve(large).model.cost(4096).summary()
    assert summary["kv_cache_elements_per_token"] == 61 * (512 + 64)
    assert summary["kv_cache_bytes_per_token"] == 70_272


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("backend", ["library", "reference"])
def test_grouped_query_attention_by_its_own_loop(n_kv_heads: int, backend: Any) -> None:
    node = replace(GROUPED, n_kv_heads=n_kv_heads, backend=backend)
    module, x_BTD = module_of(node), inputs(batch=1)
    w = {
        name: p.detach().unflatten(0, (-1, node.head_dim)) for name, p in module.named_parameters() if "out" not in name
    }
    rotation, half = table(node), node.head_dim // 2

    def turned(x: Tensor, t: int) -> Tensor:
        a, b = x[:half], x[half:]
        cos, sin = rotation.cos_TP[t], rotation.sin_TP[t]
        return torch.cat([a * cos - b * sin, b * cos + a * sin])

    for t in (0, 4, T - 1):
        outputs = []
        for head in range(node.n_heads):
            group = head * n_kv_heads // node.n_heads
            query = turned(w["q.weight"][head] @ x_BTD[0, t], t)
            keys = [turned(w["k.weight"][group] @ x_BTD[0, s], s) for s in range(t + 1)]
            values = torch.stack([w["v.weight"][group] @ x_BTD[0, s] for s in range(t + 1)])
            weight = (torch.stack(keys) @ query / node.head_dim**0.5).softmax(0)
            outputs.append(weight @ values)
        expected = module.output.weight @ torch.cat(outputs)
        torch.testing.assert_close(module(x_BTD, rotation)[0, t], expected, rtol=1e-10, atol=1e-10)


def test_off_keeps_the_presets_heads() -> None:
    base: Any = NANO.model.attention
    nodes: dict[str, Any] = {name: spec_of(FULL | {"mla": name}).model.attention for name in ("gqa", "mha", "mqa")}
    assert {name: node.n_kv_heads for name, node in nodes.items()} == {"gqa": 2, "mha": 4, "mqa": 1}
    assert all(replace(node, n_kv_heads=2) == base for node in nodes.values())


def test_rotation_depends_on_distances_alone() -> None:
    x, y = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    rotation = rotation_table(8, 40, THETA)

    def product(a: int, b: int) -> Tensor:
        return (rotation.positions(a, 1).rotate(x) * rotation.positions(b, 1).rotate(y)).sum()

    torch.testing.assert_close(product(3, 9), product(30, 36), rtol=1e-12, atol=1e-12)
    assert abs(product(3, 9) - product(3, 10)) > 1e-6


def test_positions_matter_to_the_rotated_part_alone() -> None:
    """With the rotated channels silenced, permuting earlier tokens changes nothing for the last one."""
    module, x_BTD = module_of(LATENT), inputs(batch=1)
    shuffled = x_BTD[:, [*reversed(range(T - 1)), T - 1]]
    assert not torch.allclose(module(x_BTD, table(LATENT))[0, -1], module(shuffled, table(LATENT))[0, -1])
    with torch.no_grad():
        module.kv_down.weight[LATENT.kv_lora_rank :] = 0
    torch.testing.assert_close(module(x_BTD, table(LATENT))[0, -1], module(shuffled, table(LATENT))[0, -1])


def test_the_reference_attention_is_torchs() -> None:
    q, k, v = (torch.randn(2, 3, 5, 8) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
    torch.testing.assert_close(attention(q, k, v, is_causal=True, scale=0.3), expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_heads": 0}, "attention.n_heads is 0"),
        ({"qk_rope_head_dim": 3}, "attention.qk_rope_head_dim is 3.*even"),
        ({"q_lora_rank": -1}, "attention.q_lora_rank is -1"),
    ],
)
def test_impossible_sizes_are_refused(changed: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(LATENT, **changed)
    with pytest.raises(ValueError, match="n_kv_heads is 3; it must divide"):
        replace(GROUPED, n_kv_heads=3)
