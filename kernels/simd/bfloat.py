"""bf16, the upper half of a float32: rounding, loading and scattering. Their products are in pairs.py.

AVX512-BF16 takes denormals for zero, so none may arise: what is rounded to bf16 is either zero or at least 2^-60.
"""

from typing import Any

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from numba import types

from edgellm.kernels.simd.vectors import (
    I16,
    I32,
    LANES,
    address,
    call,
    constant,
    f32x16,
    i32x16,
    operation,
    pointer,
    selected,
    shuffle,
)

F32X16, I32X16 = f32x16.llvm, i32x16.llvm
I16X16 = ir.VectorType(I16, LANES)
LARGEST = 3.0e38
SMALLEST = 2.0**-60


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


BF16X32 = ir.VectorType(_BFloat(), 2 * LANES)


def _rounded(b: Builder, v: Any) -> Any:
    bits = b.bitcast(v, I32X16)
    odd = b.and_(b.lshr(bits, constant(I32X16, 16)), constant(I32X16, 1))
    return b.lshr(b.add(bits, b.add(odd, constant(I32X16, 0x7FFF))), constant(I32X16, 16))


@operation(i32x16, f32x16)
def round_to_bf16(b: Builder, v: Any) -> Any:
    """The bits of 16 bf16, each in its lane: nearest, ties to even; of values known to be normal numbers."""
    if selected().has("avx512bf16"):
        halves = call(b, "llvm.x86.avx512bf16.cvtneps2bf16.512", ir.VectorType(_BFloat(), LANES), v)
        return b.zext(b.bitcast(halves, I16X16), I32X16)
    return _rounded(b, v)


@operation(i32x16, f32x16)
def to_bf16(b: Builder, v: Any) -> Any:
    """As round_to_bf16, of any values: NaN becomes the least number, what is below 2^-60 in size zero."""
    limited = b.select(b.fcmp_ordered(">", v, constant(F32X16, -LARGEST)), v, constant(F32X16, -LARGEST))
    limited = b.select(b.fcmp_ordered("<", limited, constant(F32X16, LARGEST)), limited, constant(F32X16, LARGEST))
    size = b.bitcast(b.and_(b.bitcast(limited, I32X16), constant(I32X16, 0x7FFFFFFF)), F32X16)
    is_small = b.fcmp_ordered("<", size, constant(F32X16, SMALLEST))
    return b.select(is_small, constant(I32X16, 0), _rounded(b, limited))


@operation(f32x16, i32x16)
def from_bf16(b: Builder, bits: Any) -> Any:
    return b.bitcast(b.shl(bits, constant(I32X16, 16)), F32X16)


@operation(i32x16, f32x16, f32x16)
def join_bf16(b: Builder, low: Any, high: Any) -> Any:
    """16 pairs of values that bf16 holds exactly."""
    return b.or_(b.lshr(b.bitcast(low, I32X16), constant(I32X16, 16)), b.bitcast(high, I32X16))


@operation(f32x16, address)
def load_bf16x16(b: Builder, where: Any) -> Any:
    bits = b.zext(b.load(pointer(b, where, I16X16), align=2), I32X16)
    return b.bitcast(b.shl(bits, constant(I32X16, 16)), F32X16)


@operation(types.void, address, types.float32)
def store_one_bf16(b: Builder, where: Any, value: Any) -> None:
    """The upper half of a float32, cut off: of values that are bf16."""
    b.store(b.trunc(b.lshr(b.bitcast(value, I32), I32(16)), I16), pointer(b, where, I16), align=2)


@operation(types.void, address, i32x16, types.int64)
def scatter_bf16(b: Builder, where: Any, bits: Any, stride: Any) -> None:
    """16 bf16, `stride` bytes apart."""
    halves = b.trunc(bits, I16X16)
    for lane in range(LANES):
        b.store(b.extract_element(halves, I32(lane)), pointer(b, where, I16), align=2)
        where = b.add(where, stride)


@operation(types.void, address, i32x16, types.int64)
def scatter_pairs(b: Builder, where: Any, bits: Any, stride: Any) -> None:
    """16 bf16 as 8 pairs of neighbours, `stride` bytes apart."""
    low, high = (shuffle(b, bits, list(range(first, LANES, 2))) for first in (0, 1))
    pairs = b.or_(low, b.shl(high, constant(high.type, 16)))
    for lane in range(LANES // 2):
        b.store(b.extract_element(pairs, I32(lane)), pointer(b, where, I32), align=4)
        where = b.add(where, stride)
