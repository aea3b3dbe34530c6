"""Arithmetic on vectors. What a name does to one lane it does to all 16; folds go through one fixed tree."""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from numba import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.cpython.unsafe.tuple import tuple_setitem
from numba.extending import lower_builtin

from edgellm.kernels.simd.vectors import (
    F32,
    I1,
    I8,
    I16,
    I32,
    I64,
    LANES,
    Vector,
    call,
    constant,
    f32x16,
    fused,
    i32x16,
    mask16,
    operation,
    shuffle,
    splat,
    u8x64,
)

F32X16, I32X16 = f32x16.llvm, i32x16.llvm
LANE_NUMBERS = ir.Constant(I32X16, list(range(LANES)))


def _binary(symbol: Callable[..., Any], emit: dict[Vector, str]) -> None:
    """Teach kernels an operator between two vectors of the same type."""

    class Typing(AbstractTemplate):
        key = symbol

        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and args[0] == args[1] and args[0] in emit:
                return signature(args[0], *args)
            return None

    infer_global(symbol)(Typing)
    for vector, name in emit.items():

        def lower(context: Any, b: Builder, sig: Any, args: Any, name: str = name) -> Any:
            return getattr(b, name)(*args)

        lower_builtin(symbol, vector, vector)(lower)


_binary(operator.add, {f32x16: "fadd", i32x16: "add"})
_binary(operator.sub, {f32x16: "fsub", i32x16: "sub"})
_binary(operator.mul, {f32x16: "fmul", i32x16: "mul"})
_binary(operator.truediv, {f32x16: "fdiv"})


@operation(f32x16, f32x16, f32x16, f32x16)
def fma(b: Builder, x: Any, y: Any, z: Any) -> Any:
    """x * y + z, rounded once."""
    return fused(b, x, y, z)


@operation(f32x16, types.float32)
def splat_f32(b: Builder, scalar: Any) -> Any:
    return splat(b, scalar)


@operation(i32x16, types.int64)
def splat_i32(b: Builder, scalar: Any) -> Any:
    return splat(b, b.trunc(scalar, I32))


@operation(f32x16)
def zero_f32(b: Builder) -> Any:
    return ir.Constant(F32X16, None)


@operation(i32x16)
def lane_numbers(b: Builder) -> Any:
    """0, 1, ... 15"""
    return LANE_NUMBERS


@operation(f32x16, f32x16, f32x16)
def maximum(b: Builder, x: Any, y: Any) -> Any:
    """The larger; y where x is NaN."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


@operation(f32x16, f32x16, f32x16)
def minimum(b: Builder, x: Any, y: Any) -> Any:
    """The smaller; y where x is NaN."""
    return b.select(b.fcmp_ordered("<", x, y), x, y)


@operation(f32x16, f32x16)
def absolute(b: Builder, x: Any) -> Any:
    return b.bitcast(b.and_(b.bitcast(x, I32X16), constant(I32X16, 0x7FFFFFFF)), F32X16)


@operation(f32x16, i32x16)
def f32_from_i32(b: Builder, v: Any) -> Any:
    return b.sitofp(v, F32X16)


@operation(f32x16, i32x16)
def f32_from_lane_bits(b: Builder, v: Any) -> Any:
    return b.bitcast(v, F32X16)


@operation(i32x16, f32x16)
def lane_bits(b: Builder, v: Any) -> Any:
    return b.bitcast(v, I32X16)


@operation(i32x16, i32x16, types.int64)
def shift_left(b: Builder, v: Any, bits: Any) -> Any:
    return b.shl(v, splat(b, b.trunc(bits, I32)))


@operation(mask16, i32x16, i32x16)
def less(b: Builder, x: Any, y: Any) -> Any:
    return b.icmp_signed("<", x, y)


@operation(mask16, mask16, mask16)
def both(b: Builder, x: Any, y: Any) -> Any:
    return b.and_(x, y)


@operation(mask16, f32x16, f32x16)
def less_f32(b: Builder, x: Any, y: Any) -> Any:
    return b.fcmp_ordered("<", x, y)


@operation(f32x16, mask16, f32x16, f32x16)
def choose(b: Builder, mask: Any, yes: Any, no: Any) -> Any:
    return b.select(mask, yes, no)


@operation(i32x16, mask16, i32x16, i32x16)
def choose_i32(b: Builder, mask: Any, yes: Any, no: Any) -> Any:
    return b.select(mask, yes, no)


@operation(f32x16, f32x16)
def swap_pairs(b: Builder, v: Any) -> Any:
    """Lanes 1, 0, 3, 2, ..."""
    return shuffle(b, v, [lane ^ 1 for lane in range(LANES)])


def _fold(b: Builder, v: Any, combine: Callable[[Any, Any], Any]) -> Any:
    for width in (8, 4, 2, 1):
        v = combine(shuffle(b, v, list(range(width))), shuffle(b, v, list(range(width, 2 * width))))
    return b.extract_element(v, I32(0))


@operation(types.float32, f32x16)
def fold_sum(b: Builder, v: Any) -> Any:
    """Sum of the lanes: halves are added, lane i to lane i + half, until one is left."""
    return _fold(b, v, b.fadd)


@operation(types.float32, f32x16)
def fold_max(b: Builder, v: Any) -> Any:
    return _fold(b, v, lambda x, y: b.select(b.fcmp_ordered(">", x, y), x, y))


@operation(types.int64, types.int64)
def variable(b: Builder, value: Any) -> Any:
    """A constant, for a kernel that others call with variables: else Numba compiles it, and all it calls, once more."""
    return value


@operation(types.int64, i32x16)
def fold_sum_i32(b: Builder, v: Any) -> Any:
    return b.sext(_fold(b, v, b.add), I64)


@operation(types.UniTuple(types.float32, 2), f32x16, f32x16)
def fold_largest_two(b: Builder, x: Any, y: Any) -> Any:
    """The largest of 32 lanes, and the largest of the other 31."""

    def ordered(p: Any, q: Any) -> tuple[Any, Any]:
        p_wins = b.fcmp_ordered(">", p, q)
        return b.select(p_wins, p, q), b.select(p_wins, q, p)

    first, second = ordered(x, y)
    for width in (8, 4, 2, 1):
        halves = list(range(width)), list(range(width, 2 * width))
        first, loser = ordered(*(shuffle(b, first, half) for half in halves))
        second, _ = ordered(*(shuffle(b, second, half) for half in halves))
        second, _ = ordered(second, loser)
    pair = b.insert_value(ir.Constant(ir.ArrayType(F32, 2), ir.Undefined), b.extract_element(first, I32(0)), 0)
    return b.insert_value(pair, b.extract_element(second, I32(0)), 1)


@operation(types.int64, f32x16, f32x16, types.float32)
def first_equal(b: Builder, x: Any, y: Any, value: Any) -> Any:
    """The first of 32 lanes that holds the value; 32 where none does."""
    low, high = (b.zext(b.bitcast(b.fcmp_ordered("==", v, splat(b, value)), I16), I64) for v in (x, y))
    mask = b.or_(b.or_(low, b.shl(high, I64(16))), I64(1 << 32))
    return call(b, "llvm.cttz.i64", I64, mask, I1(1))


@operation(types.int64, i32x16, types.int64)
def lane_of(b: Builder, v: Any, lane: Any) -> Any:
    return b.sext(b.extract_element(v, lane), I64)


@operation(types.float32, f32x16, types.int64)
def lane_of_f32(b: Builder, v: Any, lane: Any) -> Any:
    return b.extract_element(v, lane)


@operation(types.float32, types.float32)
def square_root(b: Builder, x: Any) -> Any:
    return call(b, "llvm.sqrt.f32", F32, x)


@operation(u8x64, u8x64)
def low_nibbles(b: Builder, v: Any) -> Any:
    return b.and_(v, constant(u8x64.llvm, 15))


@operation(u8x64, u8x64)
def high_nibbles(b: Builder, v: Any) -> Any:
    return b.lshr(v, constant(u8x64.llvm, 4))


@operation(u8x64, i32x16)
def bytes_of_lanes(b: Builder, v: Any) -> Any:
    return b.bitcast(v, u8x64.llvm)


@operation(i32x16, u8x64)
def lanes_of_bytes(b: Builder, v: Any) -> Any:
    return b.bitcast(v, I32X16)


@operation(u8x64, u8x64, u8x64, types.int64, types.int64)
def with_upper_bits(b: Builder, low: Any, above: Any, first: Any, count: Any) -> Any:
    """In every byte, the 4 bits of `low`, and above them `count` bits of `above` from bit `first`."""
    first, count = b.trunc(first, I8), b.trunc(count, I8)
    mask = b.sub(b.shl(I8(1), count), I8(1))
    found = b.and_(b.lshr(above, splat(b, first, 64)), splat(b, mask, 64))
    return b.or_(low, b.shl(found, constant(u8x64.llvm, 4)))


@operation(i32x16, i32x16, types.int64, types.int64)
def bits_at(b: Builder, v: Any, first: Any, count: Any) -> Any:
    """In every lane, `count` bits from bit `first`, as a number."""
    shifted = b.lshr(v, splat(b, b.trunc(first, I32)))
    mask = b.sub(b.shl(I32(1), b.trunc(count, I32)), I32(1))
    return b.and_(shifted, splat(b, mask))


def zero_tile(vector: types.Type, count: int) -> Callable[..., Any]:
    """A function that gives a tuple of `count` zero vectors, or pairs of them: registers. Write to it with `put`."""
    element = vector.llvm if isinstance(vector, Vector) else ir.ArrayType(vector.dtype.llvm, vector.count)

    @operation(types.UniTuple(vector, count))
    def zeros(b: Builder) -> Any:
        return ir.Constant(ir.ArrayType(element, count), None)

    return zeros


put: Callable[..., Any] = tuple_setitem
