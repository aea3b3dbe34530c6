"""Products of bf16 in pairs: two values to a 32-bit lane, the first in its low half.

    dot(sum, x, pair)    fma(x low, low, fma(x high, high, sum)), lane by lane, with one pair for all lanes

Zen does that in one instruction of AVX512-BF16 (it adds the high halves first and rounds twice; 32 million random sums
agreed), twice as fast as float32. Intel's processors have it at half the speed of two float32 multiply-adds. So
there, and where it is not at all, x is split once (`halves`), and pairs lie in memory as two float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from numba import types

from edgellm.kernels.simd.bfloat import BF16X32, F32X16, I16X16, I32X16
from edgellm.kernels.simd.vectors import (
    F32,
    I32,
    I64,
    address,
    call,
    constant,
    f32x16,
    fused,
    i32x16,
    operation,
    pointer,
    splat,
)

TWO = types.UniTuple(f32x16, 2)


class Pairs(NamedTuple):
    """One way to multiply pairs: how they lie in memory, and the operations on them."""

    nbytes: int  # of a pair in memory
    halves_type: types.Type
    halves: Callable[..., Any]  # 16 pairs as `dot` takes them
    dot: Callable[..., Any]
    store: Callable[..., Any]  # 16 bf16 as 8 pairs
    load: Callable[..., Any]  # what `store` stored
    broadcast: Callable[..., Any]  # the two values of a pair, each in all lanes


def native_pairs() -> Pairs:
    """By AVX512-BF16."""

    @operation(i32x16, i32x16)
    def halves(b: Builder, x: Any) -> Any:
        return x

    @operation(f32x16, f32x16, i32x16, address)
    def dot(b: Builder, total: Any, x: Any, pair: Any) -> Any:
        y = splat(b, b.load(pointer(b, pair, I32), align=4))
        return call(b, "llvm.x86.avx512bf16.dpbf16ps.512", F32X16, total, b.bitcast(x, BF16X32), b.bitcast(y, BF16X32))

    @operation(types.void, address, i32x16)
    def store(b: Builder, where: Any, bits: Any) -> None:
        b.store(b.trunc(bits, I16X16), pointer(b, where, I16X16), align=2)

    @operation(i32x16, address)
    def load(b: Builder, where: Any) -> Any:
        return b.zext(b.load(pointer(b, where, I16X16), align=2), I32X16)

    @operation(TWO, address)
    def broadcast(b: Builder, pair: Any) -> Any:
        return _split(b, splat(b, b.load(pointer(b, pair, I32), align=4)))

    return Pairs(4, i32x16, halves, dot, store, load, broadcast)


def split_pairs() -> Pairs:
    """By two multiply-adds of float32."""

    @operation(TWO, i32x16)
    def halves(b: Builder, x: Any) -> Any:
        return _split(b, x)

    @operation(f32x16, f32x16, TWO, address)
    def dot(b: Builder, total: Any, x: Any, pair: Any) -> Any:
        low, high = (splat(b, b.load(pointer(b, b.add(pair, I64(at)), F32), align=4)) for at in (0, 4))
        return fused(b, b.extract_value(x, 0), low, fused(b, b.extract_value(x, 1), high, total))

    @operation(types.void, address, i32x16)
    def store(b: Builder, where: Any, bits: Any) -> None:
        b.store(b.shl(bits, constant(I32X16, 16)), pointer(b, where, I32X16), align=4)

    @operation(i32x16, address)
    def load(b: Builder, where: Any) -> Any:
        return b.lshr(b.load(pointer(b, where, I32X16), align=4), constant(I32X16, 16))

    @operation(TWO, address)
    def broadcast(b: Builder, pair: Any) -> Any:
        return _two(b, *(splat(b, b.load(pointer(b, b.add(pair, I64(at)), F32), align=4)) for at in (0, 4)))

    return Pairs(8, TWO, halves, dot, store, load, broadcast)


def _split(b: Builder, pairs: Any) -> Any:
    low, high = b.shl(pairs, constant(I32X16, 16)), b.and_(pairs, constant(I32X16, -(1 << 16)))
    return _two(b, b.bitcast(low, F32X16), b.bitcast(high, F32X16))


def _two(b: Builder, low: Any, high: Any) -> Any:
    both = ir.Constant(ir.ArrayType(F32X16, 2), ir.Undefined)
    return b.insert_value(b.insert_value(both, low, 0), high, 1)


def make_pairs(native: bool) -> Pairs:
    return native_pairs() if native else split_pairs()
