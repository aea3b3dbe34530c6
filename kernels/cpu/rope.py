"""Rotation of a head's neighbouring entries, while its outputs are in the cache."""

from typing import Any

from edgellm.kernels.simd.arithmetic import fma, swap_pairs
from edgellm.kernels.simd.kernel import inlined, kernel
from edgellm.kernels.simd.memory import load_f32x16


@kernel
def rotated(y: int, rope: int, head_size: int, position: int, entry: int) -> Any:
    """16 outputs from `entry` of a head, rotated: rope float32 [position][2][E], cosines, then sines with signs."""
    table = rope + (position * 2 * head_size + entry) * 4
    v = load_f32x16(y)
    return fma(v, load_f32x16(table), swap_pairs(v) * load_f32x16(table + head_size * 4))


@inlined
def turned(y: int, rope: int, head_size: int, position: int, entry: int) -> Any:
    """32 outputs of a head from `entry`; as they are where `rope` is 0."""
    if rope:
        return (
            rotated(y, rope, head_size, position, entry),
            rotated(y + 64, rope, head_size, position, entry + 16),
        )
    return load_f32x16(y), load_f32x16(y + 64)
