"""The Hadamard transform: 32 values times a matrix of +-1 / sqrt(32) that is its own inverse.

Vectors transformed have the dot products they had, and a value far larger than the others is spread over all of them.
Keys and queries of a quantized KV cache are transformed so in QuaRot (Ashkboos et al., arXiv 2404.00456).
"""

from typing import Any

from llvmlite import ir
from llvmlite.ir import IRBuilder as Builder
from numba import types

from edgellm.kernels.simd.vectors import I32, LANES, constant, f32x16, operation

STAGES = (2 * LANES).bit_length() - 1
INTERLEAVED = [lane // 2 + LANES * (lane % 2) for lane in range(2 * LANES)]


@operation(types.UniTuple(f32x16, 2), f32x16, f32x16)
def hadamard(b: Builder, low: Any, high: Any) -> Any:
    """Values 0..15 and 16..31: entry i, j of the matrix is negative where i & j has an odd number of bits.

    A stage puts the sum of values i and i + 16 at 2i, and their difference at 2i + 1.
    """
    first, second = (ir.Constant(ir.VectorType(I32, LANES), INTERLEAVED[at : at + LANES]) for at in (0, LANES))
    for _ in range(STAGES):
        total, difference = b.fadd(low, high), b.fsub(low, high)
        low, high = (b.shuffle_vector(total, difference, places) for places in (first, second))
    both = ir.Constant(ir.ArrayType(f32x16.llvm, 2), ir.Undefined)
    for at, half in enumerate((low, high)):
        both = b.insert_value(both, b.fmul(half, constant(f32x16.llvm, (2 * LANES) ** -0.5)), at)
    return both
