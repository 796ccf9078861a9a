"""Operations of blockwise FP8: products of quantised matrices, and whole maps with what quantises them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ablate.bench.moe import (
    EXPERTS,
    PRODUCTS,
    composed_experts,
    ends,
    exact_gradient,
    exact_product,
    experts_flops,
    experts_inputs,
    gradient_inputs,
    library_gradient,
    library_product,
    one_or_both,
)
from ablate.bench.norms import backward, expected_backward, random
from ablate.bench.operation import Implementation, Operation, Prepared, Shape, Tensors


def operations() -> list[Operation]:
    dense = ({"N": 8192, "I": 8192, "O": 8192}, {"N": 4096, "I": 7168, "O": 4096}, {"N": 16384, "I": 2048, "O": 2048})
    return [
        *map(_dense_operation, dense),
        *map(_linear_operation, dense[1:]),
        *map(_grouped_operation, PRODUCTS[:2]),
        *map(_grouped_gradient_operation, PRODUCTS[:2]),
        _feed_forward_operation({"N": 16384, "I": 2048, "F": 6912}),
        _experts_operation(EXPERTS[1]),
    ]


def _linear_inputs(s: Shape, seed: int) -> Tensors:
    weight = random(s["O"], s["I"], seed=seed + 1, scale=s["I"] ** -0.5)
    return random(s["N"], s["I"], seed=seed), weight, random(s["N"], s["O"], seed=seed + 2)


def _quantised(x: Tensor, weight: Tensor) -> Tensors:
    from ablate.components.fp8.kernel.quantise import quantise_activation, quantise_weight

    values, scales, _, _ = quantise_activation(x, power_of_two=False, rows=True, columns=False)
    weight_values, _, weight_scales = quantise_weight(weight, power_of_two=False)
    return values, scales, weight_values, weight_scales


def _dense_operation(shape: Shape) -> Operation:
    """The product alone, of matrices that are quantised already."""

    def bf16(x: Tensor, weight: Tensor, _: Tensor) -> Prepared:
        return lambda: x @ weight.T

    def library(x: Tensor, weight: Tensor, _: Tensor) -> Prepared:
        from ablate.components.fp8.kernel.product import library_product as product

        a, a_scales, w, w_scales = _quantised(x, weight)
        return lambda: product(a, a_scales, w, w_scales, torch.bfloat16)

    def ours(x: Tensor, weight: Tensor, _: Tensor) -> Prepared:
        from ablate.components.fp8.kernel.product import product

        operands = _quantised(x, weight)
        return lambda: product(*operands, torch.bfloat16)

    return Operation(
        group="fp8",
        name="product",
        shape=shape,
        small={"N": 256, "I": 384, "O": 256},
        inputs=_linear_inputs,
        expected=lambda x, w, _: x @ w.T,
        flops=lambda s: 2.0 * s["N"] * s["I"] * s["O"],
        tolerance="float8",
        implementations=[
            Implementation(name="bfloat16 library", prepare=bf16),
            Implementation(name="library", prepare=library, needs="cuda"),
            Implementation(name="triton", prepare=ours, needs="triton"),
        ],
    )


def _linear_operation(shape: Shape) -> Operation:
    """A linear map with its quantisation, both passes: what training with FP8 costs against bfloat16."""

    def ours(backend: str) -> Callable[[Tensor, Tensor], Tensor]:
        def function(x: Tensor, weight: Tensor) -> Tensor:
            from ablate.components.fp8.kernel.linear import fp8_linear

            return fp8_linear(x, weight, power_of_two=False, backend=backend)

        return function

    def emulated(x: Tensor, weight: Tensor) -> Tensor:
        from ablate.components.fp8.emulation import Recipe, fp8_product

        return fp8_product(x, weight, None, Recipe("blockwise", False), None)

    return Operation(
        group="fp8",
        name="linear map, both passes",
        shape=shape,
        small={"N": 256, "I": 384, "O": 256},
        inputs=_linear_inputs,
        expected=expected_backward(lambda x, w: x @ w.T, 2),
        flops=lambda s: 6.0 * s["N"] * s["I"] * s["O"],
        tolerance="float8",
        slot="linear/fp8",
        implementations=[
            Implementation(name="bfloat16 library", prepare=backward(lambda x, w: x @ w.T, 2, both=True)),
            Implementation(name="emulated", prepare=backward(emulated, 2, both=True), fills="emulated"),
            Implementation(
                name="library", prepare=backward(ours("library"), 2, both=True), needs="cuda", fills="library"
            ),
            Implementation(
                name="triton", prepare=backward(ours("triton"), 2, both=True), needs="triton", fills="triton"
            ),
        ],
    )


def _feed_forward_operation(shape: Shape) -> Operation:
    """A dense SwiGLU network, both passes."""

    def inputs(s: Shape, seed: int) -> Tensors:
        n, i, f = s["N"], s["I"], s["F"]
        gate_up = random(2 * f, i, seed=seed + 1, scale=i**-0.5)
        down = random(i, f, seed=seed + 2, scale=f**-0.5)
        return random(n, i, seed=seed), gate_up, down, random(n, i, seed=seed + 3)

    def bf16(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        gate, up = (x @ gate_up.T).chunk(2, dim=-1)
        return (F.silu(gate) * up) @ down.T

    def ours(library: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def function(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
            from ablate.components.fp8.kernel.feed_forward import fp8_feed_forward

            return fp8_feed_forward(x, gate_up, down, power_of_two=False, library=library)

        return function

    return Operation(
        group="fp8",
        name="feed-forward, both passes",
        shape=shape,
        small={"N": 256, "I": 256, "F": 384},
        inputs=inputs,
        expected=expected_backward(bf16, 3),
        flops=lambda s: 18.0 * s["N"] * s["I"] * s["F"],
        tolerance="chain of float8",
        implementations=[
            Implementation(name="bfloat16 library", prepare=backward(bf16, 3, both=True)),
            Implementation(name="library", prepare=backward(ours(True), 3, both=True), needs="cuda"),
            Implementation(name="triton", prepare=backward(ours(False), 3, both=True), needs="triton"),
        ],
    )


def _grouped_operation(shape: Shape) -> Operation:
    def inputs(s: Shape, seed: int) -> Tensors:
        weight = random(s["E"], s["O"], s["I"], seed=seed + 1, scale=s["I"] ** -0.5)
        return random(s["N"], s["I"], seed=seed), weight, ends(s["N"], s["E"], seed)

    def bf16(*inputs: Tensor) -> Prepared:
        return lambda: library_product(*inputs)

    def ours(x: Tensor, weight: Tensor, offsets: Tensor) -> Prepared:
        from ablate.components.fp8.kernel.grouped import grouped_product

        operands = _quantised(x, weight)
        return lambda: grouped_product(*operands, offsets, None, torch.bfloat16)

    return Operation(
        group="fp8",
        name="grouped product",
        shape=shape,
        small={"E": 4, "N": 300, "I": 256, "O": 256},
        inputs=inputs,
        expected=exact_product,
        flops=lambda s: 2.0 * s["N"] * s["I"] * s["O"],
        tolerance="float8",
        implementations=[
            Implementation(name="bfloat16 library", prepare=bf16),
            Implementation(name="triton", prepare=ours, needs="triton"),
        ],
    )


def _grouped_gradient_operation(shape: Shape) -> Operation:
    def bf16(*inputs: Tensor) -> Prepared:
        return lambda: library_gradient(*inputs)

    def ours(g: Tensor, x: Tensor, offsets: Tensor) -> Prepared:
        from ablate.components.fp8.kernel.grouped import grouped_weight_gradient
        from ablate.components.fp8.kernel.quantise import quantise_activation

        operands = []
        for matrix in (g, x):
            operands += quantise_activation(matrix, power_of_two=False, rows=False, columns=True, offsets_E=offsets)[2:]
        return lambda: grouped_weight_gradient(*operands, offsets, torch.float32)

    return Operation(
        group="fp8",
        name="grouped weight gradient",
        shape=shape,
        small={"E": 4, "N": 300, "I": 256, "O": 256},
        inputs=gradient_inputs,
        expected=exact_gradient,
        flops=lambda s: 2.0 * s["N"] * s["I"] * s["O"],
        tolerance="float8",
        implementations=[
            Implementation(name="bfloat16 library", prepare=bf16),
            Implementation(name="triton", prepare=ours, needs="triton"),
        ],
    )


def _experts_operation(shape: Shape) -> Operation:
    """Whole experts with their quantisation, both passes."""
    prepare, exact = one_or_both(True), composed_experts(exact_product)

    def ours(*inputs: Tensor) -> Tensor:
        from ablate.components.fp8.kernel.feed_forward import fp8_routed_experts

        return fp8_routed_experts(*inputs, power_of_two=False)

    return Operation(
        group="fp8",
        name="routed experts, both passes",
        shape=shape,
        small={"N": 100, "A": 2, "E": 4, "D": 128, "F": 128},
        inputs=experts_inputs,
        expected=expected_backward(exact, 4),
        flops=experts_flops(True),
        tolerance="chain of float8",
        implementations=[
            Implementation(name="bfloat16 library", prepare=prepare(composed_experts(library_product))),
            Implementation(name="triton", prepare=prepare(ours), needs="triton"),
        ],
    )
