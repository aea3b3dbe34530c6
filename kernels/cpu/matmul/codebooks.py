"""Codes of 4 bits, in the plane of nibbles that kernels/panels.py draws, that stand for entries of a table.

A table has 16 bytes, integers with 128 added: the products are those of 8-bit codes. Two tables, the more significant
first, give integers of 16 bits, 256 * (first - 128) + second - 128.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from edgellm.kernels.simd.arithmetic import (
    bits_at,
    bytes_of_lanes,
    f32_from_i32,
    high_nibbles,
    lanes_of_bytes,
    low_nibbles,
    put,
    shift_left,
    splat_i32,
    zero_tile,
)
from edgellm.kernels.simd.dot import begin_8, dot_8
from edgellm.kernels.simd.kernel import inlined
from edgellm.kernels.simd.lookup import make_lookup
from edgellm.kernels.simd.memory import broadcast_4_bytes, forget_loads, load_i32, load_i32x16, load_u8x64
from edgellm.kernels.simd.vectors import i32x16, u8x64

Dots = Callable[..., Any]
Tables = Sequence[Sequence[int]]


def make_codebook_dots(tables: Tables) -> Callable[[int, int], Dots]:
    """As dots.py says."""
    return partial(_codebook_dots, tables)


def _codebook_dots(tables: Tables, halves: int, tokens: int) -> Dots:
    zero_dots = zero_tile(i32x16, halves * tokens)
    add_first, add_last = (_make_add(make_lookup(table), halves, tokens) for table in (tables[0], tables[-1]))
    has_two = len(tables) == 2

    @inlined
    def dots(codes: int, x: int, meta: int) -> Any:
        dot = add_first(zero_dots(), codes, x, meta)
        # The same registers take both tables' sums: a tile of 12 tokens has none for more, nor for its activations.
        if has_two:
            forget_loads()
            for i in range(halves * tokens):
                dot = put(dot, i, shift_left(dot[i], 8))
            dot = add_last(dot, codes, x, meta)
        return dot

    made: Dots = dots
    return made


def _make_add(lookup: Callable[..., Any], halves: int, tokens: int) -> Dots:
    """dot, a tuple of i32x16 [halves][tokens], and the sums of (entry - 128) * x."""
    zero_weights = zero_tile(u8x64, halves)

    @inlined
    def add(dot: Any, codes: int, x: int, meta: int) -> Any:
        for t in range(tokens):
            begin = begin_8(load_i32(meta + 12 * tokens + t * 4))
            for h in range(halves):
                dot = put(dot, h * tokens + t, dot[h * tokens + t] + begin)
        for j in range(4):
            low, high = zero_weights(), zero_weights()
            for h in range(halves):
                pairs = load_u8x64(codes + h * 256 + j * 64)
                low, high = put(low, h, lookup(low_nibbles(pairs))), put(high, h, lookup(high_nibbles(pairs)))
            for t in range(tokens):
                x_low, x_high = broadcast_4_bytes(x + t * 32 + j * 4), broadcast_4_bytes(x + t * 32 + j * 4 + 16)
                for h in range(halves):
                    d = dot_8(dot[h * tokens + t], low[h], x_low)
                    dot = put(dot, h * tokens + t, dot_8(d, high[h], x_high))
        return dot

    made: Dots = add
    return made


def codebook_code(tables: Tables) -> Callable[..., Any]:
    """`Pieces.code`."""
    first, last, has_two = make_lookup(tables[0]), make_lookup(tables[-1]), len(tables) == 2

    @inlined
    def code(codes: int, run: int, place: int, half: int) -> Any:
        column = codes + run * 512 + half * 256 + ((place & 12) << 4)
        nibbles = bytes_of_lanes(bits_at(load_i32x16(column), (place & 3) * 8 + (place >> 4) * 4, 4))
        value = bits_at(lanes_of_bytes(first(nibbles)), 0, 8) - splat_i32(128)
        if has_two:
            value = shift_left(value, 8) + bits_at(lanes_of_bytes(last(nibbles)), 0, 8) - splat_i32(128)
        return f32_from_i32(value)

    made: Callable[..., Any] = code
    return made
