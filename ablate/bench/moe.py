"""Operations of routed experts: the products of one matrix an expert, whole experts, routing, and the weighted sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ablate.bench.operation import Implementation, Operation, Prepared, Shape, Tensors, Unavailable
from ablate.bench.passes import backward, compiled, expected_backward, forward, integers, random
from ablate.components.moe.module import Permutation, place

# An expert's products in DeepSeek-V3 with 8 experts on a device, and in models of one device.
PRODUCTS = (
    {"E": 8, "N": 32768, "I": 7168, "O": 4096},
    {"E": 64, "N": 131072, "I": 1024, "O": 768},
    {"E": 128, "N": 131072, "I": 2048, "O": 1536},
)
EXPERTS = (
    {"N": 32768, "A": 8, "E": 64, "D": 1024, "F": 384},
    {"N": 32768, "A": 8, "E": 128, "D": 2048, "F": 768},
)


def operations() -> list[Operation]:
    """Products and gradients of experts' matrices, whole experts, router, weighted sum, bias update."""
    products = [_bfloat16(product_operation, library_product, _our_product, shape) for shape in PRODUCTS]
    gradients = [_bfloat16(gradient_operation, library_gradient, _our_gradient, shape) for shape in PRODUCTS]
    experts = [_experts_operation(shape, both) for shape in EXPERTS for both in (False, True)]
    return [
        *products,
        *gradients,
        *experts,
        *map(_router_operation, (64, 256)),
        _combine_operation(),
        _bias_operation(),
    ]


def ends(n: int, n_experts: int, seed: int) -> Tensor:
    """Ends of the experts' rows, int32, of a random choice that is nearly even."""
    return torch.bincount(integers(n_experts, n, seed=seed), minlength=n_experts).cumsum(0).to(torch.int32)


def placement(n: int, n_experts: int, n_activated: int, seed: int) -> Permutation:
    """Where rows of a random choice of `n_activated` of the experts stand, int32."""
    device = torch.get_default_device()
    generator = torch.Generator(device).manual_seed(seed)
    expert_NA = torch.rand(n, n_experts, generator=generator, device=device).topk(n_activated).indices
    where = place(expert_NA, torch.bincount(expert_NA.flatten(), minlength=n_experts)[None])
    return Permutation(where.token_of_row_P.int(), where.row_of_choice_NA.int(), where.offsets_E)


def by_expert(offsets: Tensor) -> list[slice]:
    """The rows of each expert, from their ends."""
    found = offsets.tolist()
    return [slice(start, end) for start, end in zip([0, *found[:-1]], found, strict=True)]


def _product_inputs(s: Shape, seed: int) -> Tensors:
    weight = random(s["E"], s["O"], s["I"], seed=seed + 1, scale=s["I"] ** -0.5)
    return random(s["N"], s["I"], seed=seed), weight, ends(s["N"], s["E"], seed)


def exact_product(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """y[p] = x[p] w[expert of p]^T by a loop over the experts, in the dtype of x. -> (N, O)"""
    return torch.cat([x[rows] @ w.T for rows, w in zip(by_expert(offsets), weight, strict=True)])


def library_product(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """`exact_product` by torch's grouped product."""
    return F.grouped_mm(x, weight.transpose(-2, -1), offs=offsets)


def _our_product(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    from ablate.kernels.grouped_product import grouped_linear

    return grouped_linear(x, weight, offsets)


def _gradient_inputs(s: Shape, seed: int) -> Tensors:
    return random(s["N"], s["O"], seed=seed), random(s["N"], s["I"], seed=seed + 1), ends(s["N"], s["E"], seed)


def _exact_gradient(g: Tensor, x: Tensor, offsets: Tensor) -> Tensor:
    return torch.stack([g[rows].T @ x[rows] for rows in by_expert(offsets)])


def library_gradient(g: Tensor, x: Tensor, offsets: Tensor) -> Tensor:
    """dw[e] = g^T x over the rows of expert e, by torch's grouped product. -> (E, O, I)"""
    return F.grouped_mm(g.T, x, offs=offsets)


def _our_gradient(g: Tensor, x: Tensor, offsets: Tensor) -> Tensor:
    from ablate.kernels.grouped_weight_gradient import grouped_weight_gradient

    return grouped_weight_gradient(g, x, offsets)


def products_flops(s: Shape) -> float:
    """Of one product of N rows; each row meets one matrix, however many there are."""
    return 2.0 * s["N"] * s["I"] * s["O"]


def product_operation(group: str, shape: Shape, small_inputs: int, **rest: Any) -> Operation:
    """Rows times their experts' matrices; `rest`: implementations, and what else the operation has."""
    small = {"E": 4, "N": 300, "I": small_inputs, "O": 256}
    return Operation(
        group=group, name="grouped product", shape=shape, small=small, inputs=_product_inputs,
        expected=exact_product, flops=products_flops, **rest,
    )  # fmt: skip


def gradient_operation(group: str, shape: Shape, small_inputs: int, **rest: Any) -> Operation:
    """The gradients of the experts' matrices; arguments as of `product_operation`."""
    product = product_operation(group, shape, small_inputs, **rest)
    return replace(product, name="grouped weight gradient", inputs=_gradient_inputs, expected=_exact_gradient)


def _bfloat16(make: Callable[..., Operation], library: Any, ours: Any, shape: Shape) -> Operation:
    implementations = [
        Implementation(name="library", prepare=forward(library), fills="library"),
        Implementation(name="triton", prepare=forward(ours), needs="triton", fills="triton"),
    ]
    slot = "linear/standard" if shape["E"] == 64 else ""
    return make("moe", shape, 128, implementations=implementations, slot=slot)


def experts_inputs(s: Shape, seed: int) -> Tensors:
    """x, the choices' weights, gate and up, down; where rows stand; the gradient of the result."""
    where = placement(s["N"], s["E"], s["A"], seed)
    weight_NA = random(s["N"], s["A"], seed=seed + 1, dtype=torch.float32).softmax(-1)
    gate_up = random(s["E"], 2 * s["F"], s["D"], seed=seed + 2, scale=s["D"] ** -0.5)
    down = random(s["E"], s["D"], s["F"], seed=seed + 3, scale=s["F"] ** -0.5)
    x, g = random(s["N"], s["D"], seed=seed), random(s["N"], s["D"], seed=seed + 4)
    return x, weight_NA, gate_up, down, where.token_of_row_P, where.row_of_choice_NA, where.offsets_E, g


def composed_experts(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As components/moe/module.py has it by torch's operations."""

    def function(
        x: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor, rows: Tensor, places: Tensor, offsets: Tensor
    ) -> Tensor:
        gate, up = product(x[rows], gate_up, offsets).chunk(2, dim=-1)
        y_PD = product(F.silu(gate) * up, down, offsets)
        return (y_PD[places] * weight.unsqueeze(-1).to(y_PD.dtype)).sum(1)

    return function


def experts_flops(both: bool) -> Callable[[Shape], float]:
    """Of a SwiGLU network for each (token, choice) pair: three products forward, six more backward."""
    return lambda s: (3.0 if both else 1.0) * 2 * s["N"] * s["A"] * 3 * s["D"] * s["F"]


def one_or_both(both: bool) -> Callable[[Callable[..., Any]], Callable[..., Prepared]]:
    """The `prepare` of an implementation of experts: gradients by x, weights and both matrices where `both`."""
    if both:
        return lambda function: backward(function, 4, both=True)
    return lambda function: forward(lambda *inputs: function(*inputs[:-1]))


def _experts_operation(shape: Shape, both: bool) -> Operation:
    prepare = one_or_both(both)
    exact = composed_experts(exact_product)

    def ours(*inputs: Tensor) -> Tensor:
        from ablate.kernels.routed_experts import routed_experts

        return routed_experts(*inputs)

    def liger(x: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor, *plan: Tensor) -> Tensor:
        return _liger_experts(x, weight, gate_up, down, *plan)

    return Operation(
        group="moe",
        name="routed experts, both passes" if both else "routed experts forward",
        shape=shape,
        small={"N": 100, "A": 2, "E": 4, "D": 128, "F": 128},
        inputs=experts_inputs,
        expected=expected_backward(exact, 4) if both else lambda *x: exact(*x[:-1]),
        flops=experts_flops(both),
        slot="feed_forward" if shape["D"] == 1024 else "",
        implementations=[
            Implementation(name="library", prepare=prepare(composed_experts(library_product)), fills="library"),
            Implementation(name="Liger", prepare=prepare(liger), needs="cuda"),
            Implementation(name="triton", prepare=prepare(ours), needs="triton", fills="triton"),
        ],
    )


def _liger_experts(x: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor, *plan: Tensor) -> Tensor:
    try:
        from liger_kernel.ops.fused_moe import LigerFusedMoEFunction
    except ImportError:
        raise Unavailable("no liger-kernel with fused experts is installed") from None
    places, offsets = plan[1], plan[2]
    # An expert is found from the place of a choice among the sorted rows.
    expert_NA = torch.bucketize(places, offsets, right=True, out_int32=True)
    return LigerFusedMoEFunction.apply(x, gate_up, down, expert_NA, weight)


def _router_operation(n_experts: int) -> Operation:
    groups, limited, chosen = 8, 4, 8
    per_group = n_experts // groups
    scores = max(1, chosen // limited)

    def inputs(s: Shape, seed: int) -> Tensors:
        logits = random(s["N"], s["E"], seed=seed, dtype=torch.float32)
        return logits, random(s["E"], seed=seed + 1, dtype=torch.float32, scale=0.01)

    def library(logits: Tensor, bias: Tensor) -> Tensors:
        """As moe.Router has it: weights, placement, counts, mean affinities; of one sequence."""
        affinity = torch.sigmoid(logits)
        score = (affinity + bias).unflatten(1, (groups, per_group))
        best = score.topk(scores, dim=-1).values.sum(-1).topk(limited, dim=-1).indices
        reachable = torch.zeros_like(score[..., 0], dtype=torch.bool).scatter_(1, best, True)
        expert = score.masked_fill(~reachable[..., None], float("-inf")).flatten(1).topk(chosen, dim=-1).indices
        picked = affinity.gather(1, expert)
        counts = torch.bincount(expert.flatten(), minlength=logits.shape[1])[None]
        where = place(expert, counts)
        mean = (affinity / affinity.sum(-1, keepdim=True)).mean(0, keepdim=True)
        return picked / picked.sum(-1, keepdim=True), where.offsets_E, mean

    def ours(logits: Tensor, bias: Tensor) -> Any:
        from ablate.components.moe.kernel import route

        return route(
            logits, bias, n_groups=groups, n_limited_groups=limited, n_group_scores=scores, n_activated=chosen,
            route_scale=1.0, n_sequences=1,
        )  # fmt: skip

    def read(result: Any) -> Tensors:
        weight, offsets, mean = result if isinstance(result, tuple) and len(result) == 3 else _routed(result)
        return weight.sort(-1).values, offsets, mean  # the order of a token's choices is no one's promise

    return Operation(
        group="moe",
        name="router",
        shape={"N": 32768, "E": n_experts},
        small={"N": 200, "E": n_experts},
        inputs=inputs,
        expected=lambda *wide: read(library(*wide)),
        bytes=lambda s: 4.0 * s["N"] * (s["E"] + 3 * chosen),
        tolerance="float32",
        slot="feed_forward" if n_experts == 64 else "",
        implementations=[
            Implementation(name="library", prepare=forward(library), read=read, fills="library"),
            Implementation(name="torch.compile", prepare=forward(compiled(library)), read=read, needs="cuda"),
            Implementation(name="triton", prepare=forward(ours), read=read, needs="triton", fills="triton"),
        ],
    )


def _routed(result: Any) -> Tensors:
    return result.weight_NA, result.offsets_E, result.affinity_BE


def _combine_operation() -> Operation:
    def inputs(s: Shape, seed: int) -> Tensors:
        places = placement(s["N"], 64, s["A"], seed).row_of_choice_NA
        weight = random(s["N"], s["A"], seed=seed + 1, dtype=torch.float32).softmax(-1)
        return random(s["N"] * s["A"], s["D"], seed=seed), weight, places

    def library(y: Tensor, weight: Tensor, places: Tensor) -> Tensor:
        return (y[places] * weight.unsqueeze(-1).to(y.dtype)).sum(1)

    def ours(y: Tensor, weight: Tensor, places: Tensor) -> Tensor:
        from ablate.kernels.combine import combine

        return combine(y, weight, places)

    return Operation(
        group="moe",
        name="weighted sum of experts",
        shape={"N": 32768, "A": 8, "D": 2048},
        small={"N": 100, "A": 4, "D": 128},
        inputs=inputs,
        expected=library,
        bytes=lambda s: 2.0 * s["N"] * s["D"] * (s["A"] + 1),
        implementations=[
            Implementation(name="library", prepare=forward(library)),
            Implementation(name="torch.compile", prepare=forward(compiled(library)), needs="cuda"),
            Implementation(name="triton", prepare=forward(ours), needs="triton"),
        ],
    )


def _bias_operation() -> Operation:
    def inputs(s: Shape, seed: int) -> Tensors:
        return random(s["E"], seed=seed, dtype=torch.float32), integers(1000, s["E"], seed=seed)

    def library(bias: Tensor, counts: Tensor) -> Tensor:
        return bias + 0.001 * torch.sign(counts.sum() - counts * counts.numel())

    def ours(bias: Tensor, counts: Tensor) -> Tensor:
        from ablate.components.aux_free.kernel import bias_update

        return bias_update(bias, counts, 0.001)

    return Operation(
        group="moe",
        name="selection bias update",
        shape={"E": 256},
        small={"E": 64},
        inputs=inputs,
        expected=library,
        tolerance="float32",
        slot="balance",
        implementations=[
            Implementation(name="library", prepare=forward(library), fills="library"),
            Implementation(name="triton", prepare=forward(ours), needs="triton", fills="triton"),
        ],
    )
