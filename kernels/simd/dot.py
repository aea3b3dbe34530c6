"""The dot product of bytes, the one operation that each instruction set does its own way.

A weight is a code u, stored unsigned; an activation s is signed and never -128. Per lane, over its 4 bytes:

    dot_4(sum, u, s)    sum + u . s                          u in 0..15
    begin_8(value)      the first sum of an INT8 product     value = -128 * (all s of the block)
    dot_8(sum, u, s)    after begin_8 and a whole block, the sum is (u - 128) . s

VNNI multiplies unsigned with signed bytes, so there the -128 is paid at the beginning; elsewhere dot_8 multiplies
u - 128 itself and begin_8 is zero. All sums are exact: nothing saturates.
"""

from typing import Any

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from numba import types

from edgellm.kernels.simd.vectors import (
    I16,
    I32,
    call,
    constant,
    i32x16,
    operation,
    selected,
    shuffle,
    splat,
    u8x64,
)


def _parts(b: Builder, v: Any, parts: int) -> list[Any]:
    width = v.type.count // parts
    return [shuffle(b, v, list(range(part * width, (part + 1) * width))) for part in range(parts)]


def _joined(b: Builder, parts: list[Any]) -> Any:
    while len(parts) > 1:
        parts = [
            b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, 2 * x.type.count), list(range(2 * x.type.count))))
            for x, y in zip(parts[::2], parts[1::2], strict=True)
        ]
    return parts[0]


def _unsigned_8() -> bool:
    return "vnni" in selected().isa


def _vnni(b: Builder, total: Any, u: Any, s: Any, bits: int) -> Any:
    words = ir.VectorType(I32, bits // 32)
    return call(b, f"llvm.x86.avx512.vpdpbusd.{bits}", words, total, b.bitcast(u, words), b.bitcast(s, words))


def _avx2(b: Builder, total: Any, u: Any, s: Any, signed: bool) -> Any:
    """Pairs of products in 16 bits, then pairs of pairs in 32."""
    words, halves = ir.VectorType(I32, 8), ir.VectorType(I16, 16)
    if signed:
        # u * s would overflow 16 bits in pairs (255 * 127 * 2): multiply |code| with s of the code's sign instead.
        code = b.xor(u, constant(u.type, 128))
        s = call(b, "llvm.x86.avx2.psign.b", s.type, s, code)
        u = b.select(b.icmp_signed("<", code, constant(code.type, 0)), b.neg(code), code)
    pairs = call(b, "llvm.x86.avx2.pmadd.ub.sw", halves, u, s)
    return b.add(total, call(b, "llvm.x86.avx2.pmadd.wd", words, pairs, constant(halves, 1)))


def _neon(b: Builder, total: Any, u: Any, s: Any, signed: bool) -> Any:
    """sdot takes signed bytes, which codes up to 15 are."""
    code = b.xor(u, constant(u.type, 128)) if signed else u
    return call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", ir.VectorType(I32, 4), total, code, s)


def _plain(b: Builder, total: Any, u: Any, s: Any, signed: bool) -> Any:
    wide = ir.VectorType(I32, u.type.count)
    code = b.sub(b.zext(u, wide), constant(wide, 128 if signed else 0))
    products = b.mul(code, b.sext(s, wide))
    for i in range(4):
        total = b.add(total, shuffle(b, products, list(range(i, u.type.count, 4))))
    return total


def _dot(b: Builder, total: Any, u: Any, s: Any, signed: bool) -> Any:
    isa = selected().isa
    if isa == "avx512-vnni":
        return _vnni(b, total, u, s, 512)
    if isa == "plain":
        return _plain(b, total, u, s, signed)
    parts = 4 if isa == "neon-dotprod" else 2
    split = zip(_parts(b, total, parts), _parts(b, u, parts), _parts(b, s, parts), strict=True)
    if isa == "avx-vnni":
        return _joined(b, [_vnni(b, *part, bits=256) for part in split])
    emit = _avx2 if isa == "avx2" else _neon
    return _joined(b, [emit(b, *part, signed=signed) for part in split])


@operation(i32x16, i32x16, u8x64, u8x64)
def dot_4(b: Builder, total: Any, u: Any, s: Any) -> Any:
    return _dot(b, total, u, s, signed=False)


@operation(i32x16, types.int64)
def begin_8(b: Builder, value: Any) -> Any:
    return splat(b, b.trunc(value, I32)) if _unsigned_8() else ir.Constant(i32x16.llvm, None)


@operation(i32x16, i32x16, u8x64, u8x64)
def dot_8(b: Builder, total: Any, u: Any, s: Any) -> Any:
    return _dot(b, total, u, s, signed=not _unsigned_8())
