"""What operators ask of the tensors they are given, and gradients brought into the form that kernels read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16)  # of activations and weights, unless an operator says otherwise
TMA_ALIGNMENT_BYTES = 16  # of a tensor's start and of every stride but the last


def check_rows(name: str, x: Tensor, dtypes: Sequence[torch.dtype], n_dims: int | None = None) -> None:
    """ValueError unless x has one of the dtypes, the number of axes, and a last axis that is contiguous."""
    if x.dtype not in dtypes:
        raise ValueError(f"{name} is {x.dtype}; it must be one of {', '.join(map(str, dtypes))}")
    if n_dims is not None and x.ndim != n_dims:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must have {n_dims} axes")
    if x.ndim and x.shape[-1] > 1 and x.stride(-1) != 1:
        raise ValueError(f"{name} has strides {x.stride()}; its last axis must be contiguous: call contiguous() first")


def check_shape(name: str, x: Tensor, shape: Sequence[int]) -> None:
    """ValueError unless x has exactly this shape."""
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be {tuple(shape)}")


def check_contiguous(name: str, x: Tensor) -> None:
    """ValueError unless x is contiguous as a whole."""
    if not x.is_contiguous():
        raise ValueError(f"{name} has strides {x.stride()}; it must be contiguous: call contiguous() first")


def check_aligned(name: str, x: Tensor) -> None:
    """ValueError unless the tensor memory accelerator can read x: start and strides in multiples of 16 bytes."""
    start, strides = 0 if x.device.type == "meta" else x.data_ptr(), _row_strides(x)
    if any(s % TMA_ALIGNMENT_BYTES for s in (start, *strides)):
        raise ValueError(
            f"{name} starts at byte {start % TMA_ALIGNMENT_BYTES} modulo 16 with strides of {strides} bytes; both must "
            "be multiples of 16: give its last axis a multiple of 8 numbers of BF16 (16 of FP8)"
        )


def check_row_numbers(name: str, numbers: Tensor | None, n: int | None = None) -> None:
    """ValueError unless these are int32 numbers of rows, or None; `n`: how many there must be."""
    if numbers is not None:
        check_rows(name, numbers, (torch.int32,), 1)
        check_shape(name, numbers, (numbers.shape[0] if n is None else n,))


def check_offsets(offsets_E: Tensor, n_experts: int) -> None:
    """ValueError unless these are int32 ends of the rows of so many experts."""
    check_row_numbers("offsets_E", offsets_E, n_experts)


def contiguous_rows(x: Tensor) -> Tensor:
    """x, or a copy where its last axis is not contiguous: autograd hands over gradients with any strides."""
    # Not contiguous(), which leaves an empty tensor with the strides that it has.
    return x if x.shape[-1] == 1 or x.stride(-1) == 1 else x.clone(memory_format=torch.contiguous_format)


def aligned_rows(x: Tensor) -> Tensor:
    """x, or a copy where the tensor memory accelerator cannot read it: rows apart, all in multiples of 16 bytes."""
    strides, size = _row_strides(x), x.element_size()
    # Not by its address, which a traced tensor does not have; torch's allocations start at multiples of more.
    aligned = not any(s % TMA_ALIGNMENT_BYTES for s in (x.storage_offset() * size, *strides))
    apart = x.stride(-1) == 1 and all(s >= x.shape[-1] * size for s in strides)
    return x if apart and aligned else x.clone(memory_format=torch.contiguous_format)


def _row_strides(x: Tensor) -> list[int]:
    """Bytes from one row to the next along every axis but the last; axes of one lead nowhere."""
    return [s * x.element_size() for s, size in zip(x.stride()[:-1], x.shape[:-1], strict=True) if size > 1]
