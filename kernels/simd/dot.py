"""The dot product of bytes, the one operation that each instruction set does its own way.

A weight is a code u, stored unsigned; an activation s is signed and never -128. Per lane, over its 4 bytes:

    begin_4(value)      sums that begin at an int32 value    of one block, no more
    dot_4(sums, u, s)   sums + u . s                         u in 0..15
                                                         or 0..31 over half a block, 0..63 over a quarter
    end_4(sums, value)  the sums of a block as int32         value as at the beginning
    begin_8(value)      the first sum of an INT8 product     value = -128 * (all s of the block)
    dot_8(sum, u, s)    after begin_8 and a whole block, the sum is (u - 128) . s

VNNI multiplies unsigned with signed bytes, so there the -128 is paid at the beginning; elsewhere dot_8 multiplies
u - 128 itself and begin_8 is zero. AVX2 adds the products of INT4 codes in 16 bits, for which those of a block are
small enough (8 pairs of at most 2 * 15 * 127), and widens them once, in end_4. All sums are exact: nothing saturates.
"""

from typing import Any

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from numba import types

from edgellm.kernels.simd.vectors import (
    I16,
    I32,
    Vector,
    call,
    constant,
    i32x16,
    joined,
    operation,
    selected,
    shuffle,
    splat,
    u8x64,
)


def _parts(b: Builder, v: Any, parts: int) -> list[Any]:
    width = v.type.count // parts
    return [shuffle(b, v, list(range(part * width, (part + 1) * width))) for part in range(parts)]


# Sums of a block of INT4 products
sums_4 = Vector("i16x32", I16, 32) if selected().isa == "avx2" else i32x16


def _unsigned_8() -> bool:
    return "vnni" in selected().isa


def _vnni(b: Builder, total: Any, u: Any, s: Any, bits: int) -> Any:
    words = ir.VectorType(I32, bits // 32)
    return call(b, f"llvm.x86.avx512.vpdpbusd.{bits}", words, total, b.bitcast(u, words), b.bitcast(s, words))


def _avx2(b: Builder, total: Any, u: Any, s: Any, signed: bool) -> Any:
    """Pairs of products in 16 bits, then pairs of pairs in 32."""
    assert signed, "INT4 products are added by dot_4 itself"
    words, halves = ir.VectorType(I32, 8), ir.VectorType(I16, 16)
    # u * s would overflow 16 bits in pairs (255 * 127 * 2): multiply |code| with s of the code's sign instead.
    code = b.xor(u, constant(u.type, 128))
    s = call(b, "llvm.x86.avx2.psign.b", s.type, s, code)
    size = b.select(b.icmp_signed("<", code, constant(code.type, 0)), b.neg(code), code)
    pairs = call(b, "llvm.x86.avx2.pmadd.ub.sw", halves, size, s)
    return b.add(total, call(b, "llvm.x86.avx2.pmadd.wd", words, pairs, constant(halves, 1)))


def _neon(b: Builder, total: Any, u: Any, s: Any, signed: bool) -> Any:
    """sdot takes signed bytes, which codes up to 15 are."""
    code = b.xor(u, constant(u.type, 128)) if signed else u
    return call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", ir.VectorType(I32, 4), total, code, s)


def _wasm(b: Builder, total: Any, u: Any, s: Any, signed: bool) -> Any:
    """Relaxed SIMD adds 4 products of a signed byte and one of 7 bits; 8-bit codes go in pairs of 16 bits."""
    if not signed:
        return call(b, "llvm.wasm.relaxed.dot.i8x16.i7x16.add.signed", ir.VectorType(I32, 4), s, u, total)
    code, words, halves = b.xor(u, constant(u.type, 128)), ir.VectorType(I32, 4), ir.VectorType(I16, 8)
    pairs = []
    for first in (0, 8):
        wide = [b.sext(shuffle(b, v, list(range(first, first + 8))), halves) for v in (code, s)]
        pairs.append(call(b, "llvm.wasm.dot", words, *wide))
    even, odd = (b.shuffle_vector(*pairs, ir.Constant(words, list(range(at, 8, 2)))) for at in (0, 1))
    return b.add(total, b.add(even, odd))


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
    parts = 2 if isa in ("avx-vnni", "avx2") else 4
    split = zip(_parts(b, total, parts), _parts(b, u, parts), _parts(b, s, parts), strict=True)
    if isa == "avx-vnni":
        return joined(b, [_vnni(b, *part, bits=256) for part in split])
    emit = {"avx2": _avx2, "neon-dotprod": _neon, "wasm-simd": _wasm}[isa]
    return joined(b, [emit(b, *part, signed=signed) for part in split])


@operation(sums_4, i32x16)
def begin_4(b: Builder, value: Any) -> Any:
    return value if sums_4 is i32x16 else ir.Constant(sums_4.llvm, None)


@operation(sums_4, sums_4, u8x64, u8x64)
def dot_4(b: Builder, sums: Any, u: Any, s: Any) -> Any:
    if sums_4 is i32x16:
        return _dot(b, sums, u, s, signed=False)
    halves = ir.VectorType(I16, 16)
    pairs = [
        call(b, "llvm.x86.avx2.pmadd.ub.sw", halves, *part)
        for part in zip(_parts(b, u, 2), _parts(b, s, 2), strict=True)
    ]
    return b.add(sums, joined(b, pairs))


@operation(i32x16, sums_4, i32x16)
def end_4(b: Builder, sums: Any, value: Any) -> Any:
    if sums_4 is i32x16:
        return sums
    words, ones = ir.VectorType(I32, 8), constant(ir.VectorType(I16, 16), 1)
    wide = [call(b, "llvm.x86.avx2.pmadd.wd", words, part, ones) for part in _parts(b, sums, 2)]
    return b.add(value, joined(b, wide))


@operation(i32x16, types.int64)
def begin_8(b: Builder, value: Any) -> Any:
    return splat(b, b.trunc(value, I32)) if _unsigned_8() else ir.Constant(i32x16.llvm, None)


@operation(i32x16, i32x16, u8x64, u8x64)
def dot_8(b: Builder, total: Any, u: Any, s: Any) -> Any:
    return _dot(b, total, u, s, signed=not _unsigned_8())
