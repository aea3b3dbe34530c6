"""Register tiles of a matrix product: a panel of weights, or half of one, times up to 6 tokens, over all inputs.

One output is  sum over blocks, ascending:    fma(float(integer dot) * activation scale, weight scale, sum)
               and with minimums:             fma(min, activation scale * sum of codes, sum)
        and then  over outliers, ascending:   fma(weight code * weight scale, 128 * high part * activation scale, sum)
in every tile, so that its bits do not depend on the tile. Outliers are few: they are listed by `list_outliers`, and
added token by token where they are. (A branch in the loop over blocks, and all tokens of the tile behind it, made
SmolLM2's prefill a third slower.)
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from edgellm.kernels.cpu.rows import HEIGHTS, META
from edgellm.kernels.ops import INT4, INT4_ASYM, INT8
from edgellm.kernels.simd.arithmetic import (
    bits_at,
    f32_from_i32,
    fma,
    high_nibbles,
    low_nibbles,
    put,
    splat_i32,
    zero_tile,
)
from edgellm.kernels.simd.dot import begin_4, begin_8, dot_4, dot_8, end_4, sums_4
from edgellm.kernels.simd.kernel import inlined, kernel
from edgellm.kernels.simd.memory import (
    broadcast_4_bytes,
    broadcast_f32,
    broadcast_i32,
    load_f16x16,
    load_f32,
    load_f32x16,
    load_i8,
    load_i32,
    load_i32x16,
    load_u8x64,
    prefetch,
    store_f32,
    store_f32x16,
    store_i32,
)
from edgellm.kernels.simd.vectors import f32x16, i32x16, selected, u8x64

HALVES = selected().tile.halves
# Few tokens wait for weights from memory, which the processor's own prefetching leaves a fifth slower (32 after
# 40 GB/s on one Zen 5 core; 4 to 12 KB ahead do equally well). Fetching scales ahead as well gained nothing.
STREAMING_TOKENS = 4
AHEAD = 6144  # bytes
ENTRY_BYTES = 16  # of an outlier in a list
TileKernel = Callable[[int, int, int, int, int, int, int, int], None]


def make_tile(layout: int, tokens: int) -> TileKernel:
    """The tile of a layout and height: arguments in `tile` below."""
    zero_sums, zero_dots = zero_tile(f32x16, HALVES * tokens), zero_tile(i32x16, HALVES * tokens)
    zero_sums_4, zero_weights = zero_tile(sums_4, HALVES * tokens), zero_tile(u8x64, HALVES)
    has_mins, is_int8 = layout == INT4_ASYM, layout == INT8
    half_bytes = 512 if is_int8 else 256
    begin_plane = 0 if has_mins else 8 * tokens  # -8 * sum; unused with minimums

    @inlined
    def dots_4(codes: int, x: int, meta: int) -> Any:
        dot = zero_sums_4()
        if not has_mins:
            for t in range(tokens):
                begin = broadcast_i32(meta + begin_plane + t * 4)
                for h in range(HALVES):
                    dot = put(dot, h * tokens + t, begin_4(begin))
        for j in range(4):
            low, high = zero_weights(), zero_weights()
            for h in range(HALVES):
                pairs = load_u8x64(codes + h * half_bytes + j * 64)
                low, high = put(low, h, low_nibbles(pairs)), put(high, h, high_nibbles(pairs))
            # Tokens outside, halves inside: an activation is broadcast once and needed no longer.
            for t in range(tokens):
                x_low, x_high = broadcast_4_bytes(x + t * 32 + j * 4), broadcast_4_bytes(x + t * 32 + j * 4 + 16)
                for h in range(HALVES):
                    d = dot_4(dot[h * tokens + t], low[h], x_low)
                    dot = put(dot, h * tokens + t, dot_4(d, high[h], x_high))
        done = zero_dots()
        for t in range(tokens):
            begin = splat_i32(0) if has_mins else broadcast_i32(meta + begin_plane + t * 4)
            for h in range(HALVES):
                done = put(done, h * tokens + t, end_4(dot[h * tokens + t], begin))
        return done

    @inlined
    def dots_8(codes: int, x: int, meta: int) -> Any:
        dot = zero_dots()
        for t in range(tokens):
            begin = begin_8(load_i32(meta + 12 * tokens + t * 4))
            for h in range(HALVES):
                dot = put(dot, h * tokens + t, begin)
        for j in range(8):
            u = zero_weights()
            for h in range(HALVES):
                u = put(u, h, load_u8x64(codes + h * half_bytes + j * 64))
            for t in range(tokens):
                x_here = broadcast_4_bytes(x + t * 32 + j * 4)
                for h in range(HALVES):
                    dot = put(dot, h * tokens + t, dot_8(dot[h * tokens + t], u[h], x_here))
        return dot

    dots = dots_8 if is_int8 else dots_4

    @kernel
    def tile(codes: int, scales: int, mins: int, x: int, meta: int, blocks: int, group_shift: int, out: int) -> None:
        """out float32 [tokens][32], the first 16 * HALVES of each row; group_shift = log2(blocks of a group)."""
        total = zero_sums()
        for block in range(blocks):
            if tokens <= STREAMING_TOKENS:
                for line in range(0, 2 * half_bytes, 64):
                    prefetch(codes + AHEAD + line)
            dot = dots(codes, x, meta)
            group = (block >> group_shift) * 64
            for h in range(HALVES):
                scale = load_f16x16(scales + group + h * 32)
                for t in range(tokens):
                    scaled = f32_from_i32(dot[h * tokens + t]) * broadcast_f32(meta + t * 4)
                    total = put(total, h * tokens + t, fma(scaled, scale, total[h * tokens + t]))
                if has_mins:
                    low = load_f16x16(mins + group + h * 32)
                    for t in range(tokens):
                        sums = broadcast_f32(meta + 4 * tokens + t * 4)
                        total = put(total, h * tokens + t, fma(low, sums, total[h * tokens + t]))
            codes += 2 * half_bytes
            x += 32 * tokens
            meta += META * tokens
        for h in range(HALVES):
            for t in range(tokens):
                store_f32x16(out + t * 128 + h * 64, total[h * tokens + t])

    made: TileKernel = tile
    return made


@kernel
def list_outliers(meta: int, blocks: int, tokens: int, entries: int) -> int:
    """Note the outliers of a tile of rows, blocks ascending; returns how many.

    An entry is 16 bytes: float32 128 * high part * activation scale, int32 block, int32 index in it, int32 row * 128.
    """
    count = 0
    for block in range(blocks):
        at = meta + block * tokens * META
        any_word = 0
        for t in range(tokens):
            any_word |= load_i32(at + 16 * tokens + t * 4)
        if any_word:
            for t in range(tokens):
                word = at + 16 * tokens + t * 4
                if load_i32(word):
                    place, entry = load_i32(at + 20 * tokens + t * 4), entries + count * ENTRY_BYTES
                    high_part = load_i8(word + (place & 3))
                    store_f32(entry, np.float32(128 * high_part) * load_f32(at + t * 4))
                    store_i32(entry + 4, block)
                    store_i32(entry + 8, place)
                    store_i32(entry + 12, t * 128)
                    count += 1
    return count


def make_add_outliers(layout: int) -> Callable[..., None]:
    """What the outliers of a tile add to its products with a panel of a layout."""
    is_int8, zero_point = layout == INT8, {INT4: 8, INT4_ASYM: 0}.get(layout, 128)
    half_bytes = 512 if is_int8 else 256

    @kernel
    def add_outliers(codes: int, scales: int, group_shift: int, out: int, entries: int, count: int) -> None:
        """out float32 [tokens][32] += ..., for `count` entries of `list_outliers`."""
        for i in range(count):
            entry = entries + i * ENTRY_BYTES
            value, block, place = broadcast_f32(entry), load_i32(entry + 4), load_i32(entry + 8)
            group = scales + (block >> group_shift) * 64
            column = codes + block * 2 * half_bytes + ((place >> 2) << 6 if is_int8 else (place & 12) << 4)
            bit = (place & 3) * 8 if is_int8 else (place & 3) * 8 + (place >> 4) * 4
            for h in range(2):
                u = bits_at(load_i32x16(column + h * half_bytes), bit, 8 if is_int8 else 4)
                weight = f32_from_i32(u - splat_i32(zero_point)) * load_f16x16(group + h * 32)
                to = out + load_i32(entry + 12) + h * 64
                store_f32x16(to, fma(weight, value, load_f32x16(to)))

    made: Callable[..., None] = add_outliers
    return made


def make_product(layout: int) -> Callable[..., None]:
    """out float32 [tokens][32] = 32 rows of weights of a layout times a tile of rows of any height."""
    tiles = {height: make_tile(layout, height) for height in HEIGHTS}
    one, two, full = tiles[1], tiles[2], tiles[HEIGHTS[0]]
    four = tiles.get(4, full)
    half_bytes = 512 if layout == INT8 else 256

    @kernel
    def product(
        codes: int, scales: int, mins: int, x: int, meta: int, blocks: int, group_shift: int, out: int, tokens: int
    ) -> None:
        for half in range(0, 2, HALVES):
            c, s, m, to = codes + half * half_bytes, scales + half * 32, mins + half * 32, out + half * 64
            if tokens == 1:
                one(c, s, m, x, meta, blocks, group_shift, to)
            elif tokens == 2:
                two(c, s, m, x, meta, blocks, group_shift, to)
            elif tokens == 4:
                four(c, s, m, x, meta, blocks, group_shift, to)
            else:
                full(c, s, m, x, meta, blocks, group_shift, to)

    made: Callable[..., None] = product
    return made
