"""Tables of 16 bytes, looked up by the byte shuffle that every instruction set has."""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder

from edgellm.kernels.simd.vectors import I8, call, constant, joined, operation, selected, shuffle, u8x64

# What takes a table and so many codes, as LLVM calls it; a code above 15 may give anything
SHUFFLES = {
    "avx512-vnni": (64, "llvm.x86.avx512.pshuf.b.512"),
    "avx-vnni": (32, "llvm.x86.avx2.pshuf.b"),
    "avx2": (32, "llvm.x86.avx2.pshuf.b"),
    "neon-dotprod": (16, "llvm.aarch64.neon.tbl1.v16i8"),
    "wasm-simd": (16, "llvm.wasm.swizzle"),
}


def make_lookup(table: Sequence[int]) -> Callable[..., Any]:
    """A function u8x64 -> u8x64: of every byte, a code in 0..15, the entry of the table, a byte as well."""
    assert len(table) == 16 and all(0 <= entry < 256 for entry in table), table

    @operation(u8x64, u8x64)
    def lookup(b: Builder, codes: Any) -> Any:
        if selected().isa not in SHUFFLES:
            return _chosen(b, table, codes)
        width, name = SHUFFLES[selected().isa]
        entries = ir.Constant(ir.VectorType(I8, width), list(table) * (width // 16))
        parts = [shuffle(b, codes, list(range(at, at + width))) for at in range(0, 64, width)]
        return joined(b, [call(b, name, entries.type, entries, part) for part in parts])

    return lookup


def _chosen(b: Builder, table: Sequence[int], codes: Any) -> Any:
    """By comparing with every code."""
    found = constant(codes.type, table[0])
    for code in range(1, 16):
        found = b.select(
            b.icmp_signed("==", codes, constant(codes.type, code)), constant(codes.type, table[code]), found
        )
    return found
