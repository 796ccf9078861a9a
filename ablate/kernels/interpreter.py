"""Repairs of Triton's interpreter, so that kernels run on a processor with the numbers that a device gives.

Triton 3.6 to 3.9 multiply bfloat16 as if its bits were integers, cut float32 off to bfloat16, and round to E4M3 with
ties away from zero and a lost carry, all without an error. The conversions here are torch's own; sums of products are
float32, as on tensor cores. Not imitated: the order of sums, and flushing of subnormal float32 numbers.
Applies to kernels that are run with TRITON_INTERPRET=1, and only to them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

TORCH = {
    tl.float64: torch.float64,
    tl.float32: torch.float32,
    tl.float16: torch.float16,
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
}
# A device's conversion saturates: finite numbers and infinities beyond become the largest finite number.
MAX_FINITE = {tl.float8e4nv: 448.0, tl.float8e5: 57344.0}
STORED_AS_BITS = (tl.bfloat16, tl.float8e4nv, tl.float8e5)

_convert_float = interpreter._convert_float
_binary_op = interpreter.InterpreterBuilder.binary_op
_ternary_op = interpreter.InterpreterBuilder.ternary_op
_unary_op = interpreter.InterpreterBuilder.unary_op
_cast = interpreter.InterpreterBuilder.cast_impl


def convert(data: np.ndarray, source: Any, target: Any, rounding: Any = None) -> np.ndarray:
    """The bits of `target` numbers (as unsigned integers) for the bits of `source` numbers, nearest even."""
    source, target = source.scalar, target.scalar
    towards_zero = rounding is not None and rounding == interpreter._ir.ROUNDING_MODE.RTZ
    if source not in TORCH or target not in TORCH or towards_zero:
        return _convert_float(data, source, target, rounding)
    bits = torch.from_numpy(np.array(data, order="C", copy=True).reshape(-1).view(np.uint8))
    numbers = bits.view(TORCH[source])
    if target in MAX_FINITE:
        numbers = numbers.float().clamp(-MAX_FINITE[target], MAX_FINITE[target])
    converted = numbers.to(TORCH[target]).view(torch.uint8).numpy()
    return converted.view(f"uint{target.primitive_bitwidth}").reshape(np.shape(data))


def _float32(handle: Any) -> np.ndarray:
    """The numbers of a handle that stores bits, as float32; of others as they are."""
    if handle.dtype.scalar not in STORED_AS_BITS:
        return handle.data
    return convert(handle.data, handle.dtype, tl.float32).view(np.float32)


def _handle(numbers: np.ndarray, dtype: Any) -> Any:
    """float32 results back in the format that `dtype` is stored in; truth values stay what they are."""
    if numbers.dtype == np.bool_:
        return interpreter.TensorHandle(numbers, tl.int1)
    return interpreter.TensorHandle(convert(numbers.astype(np.float32), tl.float32, dtype), dtype.scalar)


def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
    """Arithmetic of two operands, in float32 where their format is stored as bits."""
    if lhs.dtype.scalar not in STORED_AS_BITS:
        return _binary_op(self, lhs, rhs, op)
    return _handle(op(_float32(lhs), _float32(rhs)), lhs.dtype)


def ternary_op(self: Any, lhs: Any, rhs: Any, other: Any, op: Any) -> Any:
    """Arithmetic of three operands, in float32 where the last one's format is stored as bits."""
    if other.dtype.scalar not in STORED_AS_BITS or op is np.where:
        return _ternary_op(self, lhs, rhs, other, op)
    return _handle(op(_float32(lhs), _float32(rhs), _float32(other)), other.dtype)


def unary_op(self: Any, argument: Any, op: Any) -> Any:
    """A function of one operand, in float32 where its format is stored as bits."""
    if argument.dtype.scalar not in STORED_AS_BITS:
        return _unary_op(self, argument, op)
    return _handle(op(_float32(argument)), argument.dtype)


def cast(self: Any, source: Any, target: Any) -> Any:
    """Conversion between formats, by torch between two formats of floating point."""
    was, becomes = source.dtype.scalar, target.scalar
    if was in TORCH and becomes in TORCH:
        data = convert(source.data, was, becomes).view(interpreter._get_np_dtype(target))
        return interpreter.TensorHandle(data, becomes)
    if was in STORED_AS_BITS:
        return interpreter.TensorHandle(_float32(source).astype(interpreter._get_np_dtype(target)), becomes)
    if becomes in STORED_AS_BITS:
        return _handle(source.data.astype(np.float32), becomes)
    return _cast(self, source, target)


def dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    """a b + d, multiplied and summed in the accumulator's format but never below float32."""
    wide = d.data.dtype if d.data.dtype in (np.float64, np.int32) else np.float32
    result = np.matmul(_float32(a).astype(wide), _float32(b).astype(wide)) + _float32(d).astype(wide)
    if d.dtype.scalar in STORED_AS_BITS:
        return _handle(result, d.dtype)
    return interpreter.TensorHandle(result.astype(d.data.dtype), d.dtype.scalar)


def _scalar_conversions(patch: Any) -> Any:
    """A tensor of one element converts to a number: NumPy 2.4 refuses that for arrays of shape (1,)."""

    def patched(tensor: Any, *arguments: Any) -> Any:
        result = patch(tensor, *arguments)
        tensor.__index__ = tensor.__int__ = lambda self: int(self.handle.data.reshape(-1)[0])
        return result

    return patched


def repair() -> None:
    """Install the repairs; a second call changes nothing."""
    builder = interpreter.InterpreterBuilder
    if builder.create_dot is dot:
        return
    interpreter._convert_float = convert
    interpreter._patch_lang_tensor = _scalar_conversions(interpreter._patch_lang_tensor)
    builder.create_dot, builder.cast_impl = dot, cast
    builder.binary_op, builder.ternary_op, builder.unary_op = binary_op, ternary_op, unary_op
    for name in ("si_to_fp", "ui_to_fp", "fp_to_si", "fp_to_ui", "fp_ext", "fp_trunc"):
        setattr(builder, f"create_{name}", cast)
