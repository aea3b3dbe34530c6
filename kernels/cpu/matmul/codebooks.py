"""Codes of 4 bits, in the plane of nibbles that kernels/panels.py draws, that stand for integers of a table.

up to 12 in magnitude    products as of codes of 5 bits, 12 added to the integers, which AVX2 has a quick way for
of 8 bits                products as of codes of 8 bits
of 16 bits               256 * high + low, two tables of 8 bits, one after the other
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from edgellm.kernels.cpu.matmul.dots import Dots, dot_pair
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

Table = Sequence[int]
SMALL = 12  # zero point of small integers; up to 15 would do


def _split(table: Table) -> tuple[list[int], list[int]]:
    """The high and the low signed bytes of integers."""
    high = [(value + 128) >> 8 for value in table]
    return high, [value - 256 * above for value, above in zip(table, high, strict=True)]


def make_codebook_dots(table: Table) -> Callable[[int, int], Dots]:
    """As dots.py says."""
    return partial(_codebook_dots, table)


def _codebook_dots(table: Table, halves: int, tokens: int) -> Dots:
    zero_dots = zero_tile(i32x16, halves * tokens)
    high, low = _split(table)
    has_high, is_small = any(high), max(map(abs, table)) <= SMALL
    add_high, add_low = _make_add(high, False, halves, tokens), _make_add(low, is_small, halves, tokens)

    @inlined
    def dots(codes: int, x: int, meta: int) -> Any:
        dot = zero_dots()
        # The same registers take both tables' sums: a tile of 12 tokens has none for more, nor for its activations.
        if has_high:
            dot = add_high(dot, codes, x, meta)
            forget_loads()
            for i in range(halves * tokens):
                dot = put(dot, i, shift_left(dot[i], 8))
        return add_low(dot, codes, x, meta)

    made: Dots = dots
    return made


def _make_add(table: Table, is_small: bool, halves: int, tokens: int) -> Dots:
    """dot, a tuple of i32x16 [halves][tokens], and the sums of integers of 8 bits times x."""
    lookup, zero_weights = (
        make_lookup([value + (SMALL if is_small else 128) for value in table]),
        zero_tile(u8x64, halves),
    )

    @inlined
    def add(dot: Any, codes: int, x: int, meta: int) -> Any:
        for t in range(tokens):
            sums = load_i32(meta + 8 * tokens + t * 4) >> 3  # minus those of x
            begin = splat_i32(SMALL * sums) if is_small else begin_8(128 * sums)
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
                    so_far = dot[h * tokens + t]
                    if is_small:
                        dot = put(dot, h * tokens + t, dot_pair(so_far, low[h], x_low, high[h], x_high))
                    else:
                        dot = put(dot, h * tokens + t, dot_8(dot_8(so_far, low[h], x_low), high[h], x_high))
        return dot

    made: Dots = add
    return made


def codebook_code(table: Table) -> Callable[..., Any]:
    """`Pieces.code`."""
    first, last = (make_lookup([value + 128 for value in plane]) for plane in _split(table))

    @inlined
    def code(codes: int, run: int, place: int, half: int) -> Any:
        column = codes + run * 512 + half * 256 + ((place & 12) << 4)
        nibbles = bytes_of_lanes(bits_at(load_i32x16(column), (place & 3) * 8 + (place >> 4) * 4, 4))
        high, low = (bits_at(lanes_of_bytes(first(nibbles)), 0, 8), bits_at(lanes_of_bytes(last(nibbles)), 0, 8))
        return f32_from_i32(shift_left(high, 8) + low - splat_i32(257 * 128))

    made: Callable[..., Any] = code
    return made
