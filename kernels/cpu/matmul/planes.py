"""Codes of 5 and 6 bits: a plane of nibbles and one of upper bits, drawn in kernels/panels.py."""

from collections.abc import Callable
from functools import partial
from typing import Any

from edgellm.kernels.cpu.matmul.dots import Dots, dot_pair
from edgellm.kernels.simd.arithmetic import (
    bits_at,
    f32_from_i32,
    high_nibbles,
    low_nibbles,
    put,
    splat_i32,
    with_upper_bits,
    zero_tile,
)
from edgellm.kernels.simd.kernel import inlined
from edgellm.kernels.simd.memory import broadcast_4_bytes, load_i32x16, load_u8x64, sum_of_16_bytes
from edgellm.kernels.simd.vectors import i32x16, u8x64


def make_plane_dots(upper: int, zero_point: int) -> Callable[[int, int], Dots]:
    """As dots.py says, of a run of 32 / upper inputs; zero_point is 0 or that of 16 inputs."""
    assert upper in (1, 2) and (zero_point == 0 or upper == 2)
    return partial(_plane_dots, upper, zero_point)


def _plane_dots(upper: int, zero_point: int, halves: int, tokens: int) -> Dots:
    registers, half_bytes = 4 // upper, 64 * (4 // upper + 1)
    zero_dots, zero_weights = zero_tile(i32x16, halves * tokens), zero_tile(u8x64, halves)
    has_zero_point = zero_point != 0

    @inlined
    def dots(codes: int, x: int, meta: int) -> Any:
        dot = zero_dots()
        if has_zero_point:
            for t in range(tokens):
                begin = splat_i32(-zero_point * sum_of_16_bytes(x + t * 32))
                for h in range(halves):
                    dot = put(dot, h * tokens + t, begin)
        above = zero_weights()
        for h in range(halves):
            above = put(above, h, load_u8x64(codes + h * half_bytes + registers * 64))
        for k in range(registers):
            low, high = zero_weights(), zero_weights()
            for h in range(halves):
                pairs = load_u8x64(codes + h * half_bytes + k * 64)
                low = put(low, h, with_upper_bits(low_nibbles(pairs), above[h], k * upper, upper))
                high = put(high, h, with_upper_bits(high_nibbles(pairs), above[h], (registers + k) * upper, upper))
            for t in range(tokens):
                x_low = broadcast_4_bytes(x + t * 32 + k * 4)
                x_high = broadcast_4_bytes(x + t * 32 + (registers + k) * 4)
                for h in range(halves):
                    d = dot_pair(dot[h * tokens + t], low[h], x_low, high[h], x_high)
                    dot = put(dot, h * tokens + t, d)
        return dot

    made: Dots = dots
    return made


def plane_code(upper: int, zero_point: int) -> Callable[..., Any]:
    """`Pieces.code`."""
    registers, half_bytes = 4 // upper, 64 * (4 // upper + 1)

    @inlined
    def code(codes: int, run: int, place: int, half: int) -> Any:
        at, group, byte = codes + (2 * run + half) * half_bytes, place >> 2, (place & 3) * 8
        nibbles, above = load_i32x16(at + group % registers * 64), load_i32x16(at + registers * 64)
        low = bits_at(nibbles, byte + group // registers * 4, 4)
        high = bits_at(above, byte + group * upper, upper)
        return f32_from_i32(low + high * splat_i32(16) - splat_i32(zero_point))

    made: Callable[..., Any] = code
    return made
