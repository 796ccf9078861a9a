"""Operations of blockwise FP8: products of quantised matrices, and whole maps with what quantises them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ablate.bench.moe import (
    EXPERTS,
    PRODUCTS,
    composed_experts,
    exact_product,
    experts_flops,
    experts_inputs,
    gradient_operation,
    library_gradient,
    library_product,
    one_or_both,
    product_operation,
    products_flops,
)
from ablate.bench.operation import Implementation, Operation, Prepared, Shape, Tensors, Unavailable
from ablate.bench.passes import backward, expected_backward, random


def operations() -> list[Operation]:
    """Products, maps and networks with every matrix in E4M3; quantisation alone is in quantise.py."""
    dense = ({"N": 8192, "I": 8192, "O": 8192}, {"N": 4096, "I": 7168, "O": 4096}, {"N": 16384, "I": 2048, "O": 2048})
    return [
        *map(_dense_operation, dense),
        *map(_linear_operation, dense[1:]),
        *(_grouped_operation(product_operation, library_product, _our_product, shape) for shape in PRODUCTS[:2]),
        *(_grouped_operation(gradient_operation, library_gradient, _our_gradient, shape) for shape in PRODUCTS[:2]),
        _feed_forward_operation({"N": 16384, "I": 2048, "F": 6912}),
        _experts_operation(EXPERTS[1]),
    ]


def _linear_inputs(s: Shape, seed: int) -> Tensors:
    weight = random(s["O"], s["I"], seed=seed + 1, scale=s["I"] ** -0.5)
    return random(s["N"], s["I"], seed=seed), weight, random(s["N"], s["O"], seed=seed + 2)


def _of_one_matrix(name: str, shape: Shape, **rest: Any) -> Operation:
    small = {"N": 256, "I": 384, "O": 256}
    return Operation(
        group="fp8", name=name, shape=shape, small=small, inputs=_linear_inputs, tolerance="float8", **rest
    )  # fmt: skip


def _quantised(x: Tensor, weight: Tensor) -> Tensors:
    from ablate.components.fp8.kernel.quantise import quantise_activation, quantise_weight

    values, scales, _, _ = quantise_activation(x, power_of_two=False, rows=True, columns=False)
    weight_values, _, weight_scales = quantise_weight(weight, power_of_two=False)
    return values, scales, weight_values, weight_scales


def _by_cublas(x: Tensor, weight: Tensor) -> None:
    """Unavailable, with the reason, where cuBLAS does not take the products of these rows and this weight."""
    from ablate.components.fp8.kernel.product import machine_of, supported

    if obstacle := supported(machine_of(x.device), weight.shape[1], weight.shape[0], x.shape[0]):
        raise Unavailable(obstacle)


def _dense_operation(shape: Shape) -> Operation:
    """The product alone, of matrices that are quantised already."""

    def bf16(x: Tensor, weight: Tensor, _: Tensor) -> Prepared:
        return lambda: x @ weight.T

    def library(x: Tensor, weight: Tensor, _: Tensor) -> Prepared:
        from ablate.components.fp8.kernel.product import library_product as product

        _by_cublas(x, weight)
        a, a_scales, w, w_scales = _quantised(x, weight)
        return lambda: product(a, a_scales, w, w_scales, torch.bfloat16)

    def ours(x: Tensor, weight: Tensor, _: Tensor) -> Prepared:
        from ablate.components.fp8.kernel.product import product

        operands = _quantised(x, weight)
        return lambda: product(*operands, torch.bfloat16)

    return _of_one_matrix(
        "product",
        shape,
        expected=lambda x, w, _: x @ w.T,
        flops=products_flops,
        implementations=[
            Implementation(name="bfloat16 library", prepare=bf16),
            Implementation(name="library", prepare=library, needs="cuda"),
            Implementation(name="triton", prepare=ours, needs="triton"),
        ],
    )


def _linear_operation(shape: Shape) -> Operation:
    """A linear map with its quantisation, both passes: what training with FP8 costs against bfloat16."""

    def ours(backend: str, needs: str) -> Implementation:
        def function(x: Tensor, weight: Tensor) -> Tensor:
            from ablate.components.fp8.kernel.linear import fp8_linear

            if backend == "library":
                _by_cublas(x, weight)
            return fp8_linear(x, weight, power_of_two=False, backend=backend)

        return Implementation(name=backend, prepare=backward(function, 2, both=True), needs=needs, fills=backend)

    def emulated(x: Tensor, weight: Tensor) -> Tensor:
        from ablate.components.fp8.emulation import Recipe, fp8_product

        return fp8_product(x, weight, None, Recipe("blockwise", False), None)

    return _of_one_matrix(
        "linear map, both passes",
        shape,
        expected=expected_backward(lambda x, w: x @ w.T, 2),
        flops=lambda s: 3.0 * products_flops(s),
        slot="linear/fp8",
        implementations=[
            Implementation(name="bfloat16 library", prepare=backward(lambda x, w: x @ w.T, 2, both=True)),
            Implementation(name="emulated", prepare=backward(emulated, 2, both=True), fills="emulated"),
            ours("library", needs="cuda"),
            ours("triton", needs="triton"),
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

            if library:
                _by_cublas(x, gate_up)
                _by_cublas(x, down)
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


def _grouped_operation(make: Callable[..., Operation], library: Any, ours: Any, shape: Shape) -> Operation:
    implementations = [
        Implementation(name="bfloat16 library", prepare=lambda *inputs: lambda: library(*inputs)),
        Implementation(name="triton", prepare=ours, needs="triton"),
    ]
    return make("fp8", shape, 256, implementations=implementations, tolerance="float8")


def _our_product(x: Tensor, weight: Tensor, offsets: Tensor) -> Prepared:
    from ablate.components.fp8.kernel.grouped import grouped_product

    operands = _quantised(x, weight)
    return lambda: grouped_product(*operands, offsets, None, torch.bfloat16)


def _our_gradient(g: Tensor, x: Tensor, offsets: Tensor) -> Prepared:
    from ablate.components.fp8.kernel.grouped import grouped_weight_gradient
    from ablate.components.fp8.kernel.quantise import quantise_activation

    operands = []
    for matrix in (g, x):
        operands += quantise_activation(matrix, power_of_two=False, rows=False, columns=True, offsets_E=offsets)[2:]
    return lambda: grouped_weight_gradient(*operands, offsets, torch.float32)


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
