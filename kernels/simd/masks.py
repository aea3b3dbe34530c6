"""Masks of 16 lanes: made by a comparison, and as the low 16 bits of a number, lane 0 the lowest."""

from typing import Any

from llvmlite.ir import IRBuilder as Builder
from numba import types

from edgellm.kernels.simd.vectors import I1, I16, I64, call, f32x16, mask16, operation


@operation(mask16, f32x16, f32x16)
def at_least(b: Builder, x: Any, y: Any) -> Any:
    """x >= y; not where one is NaN."""
    return b.fcmp_ordered(">=", x, y)


@operation(types.int64, mask16)
def mask_bits(b: Builder, mask: Any) -> Any:
    return b.zext(b.bitcast(mask, I16), I64)


@operation(mask16, types.int64)
def mask_from_bits(b: Builder, bits: Any) -> Any:
    return b.bitcast(b.trunc(bits, I16), mask16.llvm)


@operation(types.int64, types.int64)
def lowest_bit(b: Builder, bits: Any) -> Any:
    """The number of the lowest bit set, of bits that are not all 0."""
    return call(b, "llvm.cttz.i64", I64, bits, I1(1))
