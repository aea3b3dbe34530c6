"""Integer dot products of a block of codes with a tile of tokens, for the planes of codes that panels.py draws.

A factory gives `dots(codes, x, meta)`: codes of a block, from the half that the tile begins with; x int8 [tokens][32];
meta of the tile's block -> a tuple of i32x16 [halves][tokens], the sums of (code - zero point) * x over the 32 inputs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from edgellm.kernels.simd.arithmetic import high_nibbles, low_nibbles, put, splat_i32, zero_tile
from edgellm.kernels.simd.dot import begin_4, begin_8, dot_4, dot_8, end_4, sums_4
from edgellm.kernels.simd.kernel import inlined
from edgellm.kernels.simd.memory import broadcast_4_bytes, broadcast_i32, load_i32, load_u8x64
from edgellm.kernels.simd.vectors import i32x16, u8x64

Dots = Callable[..., Any]


@inlined
def dot_pair(so_far: Any, low: Any, x_low: Any, high: Any, x_high: Any) -> Any:
    """so_far + low . x_low + high . x_high, i32x16, of codes in 0..63."""
    return end_4(dot_4(dot_4(begin_4(so_far), low, x_low), high, x_high), so_far)


def make_nibble_dots(zero_point: int) -> Callable[[int, int], Dots]:
    """A factory for codes of 4 bits, whose zero point is 0 or 8."""
    assert zero_point in (0, 8), zero_point
    return partial(_nibble_dots, zero_point)


def _nibble_dots(zero_point: int, halves: int, tokens: int) -> Dots:
    has_zero_point = zero_point != 0
    zero_dots, zero_sums = zero_tile(i32x16, halves * tokens), zero_tile(sums_4, halves * tokens)
    zero_weights = zero_tile(u8x64, halves)
    begin_plane = 8 * tokens  # -8 * sum

    @inlined
    def dots(codes: int, x: int, meta: int) -> Any:
        dot = zero_sums()
        if has_zero_point:
            for t in range(tokens):
                begin = broadcast_i32(meta + begin_plane + t * 4)
                for h in range(halves):
                    dot = put(dot, h * tokens + t, begin_4(begin))
        for j in range(4):
            low, high = zero_weights(), zero_weights()
            for h in range(halves):
                pairs = load_u8x64(codes + h * 256 + j * 64)
                low, high = put(low, h, low_nibbles(pairs)), put(high, h, high_nibbles(pairs))
            # Tokens outside, halves inside: an activation is broadcast once and needed no longer.
            for t in range(tokens):
                x_low, x_high = broadcast_4_bytes(x + t * 32 + j * 4), broadcast_4_bytes(x + t * 32 + j * 4 + 16)
                for h in range(halves):
                    d = dot_4(dot[h * tokens + t], low[h], x_low)
                    dot = put(dot, h * tokens + t, dot_4(d, high[h], x_high))
        done = zero_dots()
        for t in range(tokens):
            begin = broadcast_i32(meta + begin_plane + t * 4) if has_zero_point else splat_i32(0)
            for h in range(halves):
                done = put(done, h * tokens + t, end_4(dot[h * tokens + t], begin))
        return done

    made: Dots = dots
    return made


def make_byte_dots(halves: int, tokens: int) -> Dots:
    """Of codes of 8 bits, whose zero point is 128."""
    zero_dots, zero_weights = zero_tile(i32x16, halves * tokens), zero_tile(u8x64, halves)

    @inlined
    def dots(codes: int, x: int, meta: int) -> Any:
        dot = zero_dots()
        for t in range(tokens):
            begin = begin_8(load_i32(meta + 12 * tokens + t * 4))
            for h in range(halves):
                dot = put(dot, h * tokens + t, begin)
        for j in range(8):
            u = zero_weights()
            for h in range(halves):
                u = put(u, h, load_u8x64(codes + h * 512 + j * 64))
            for t in range(tokens):
                x_here = broadcast_4_bytes(x + t * 32 + j * 4)
                for h in range(halves):
                    dot = put(dot, h * tokens + t, dot_8(dot[h * tokens + t], u[h], x_here))
        return dot

    made: Dots = dots
    return made
