"""Register tiles of a matrix product: a panel of weights, or half of one, times a few tokens, over all inputs.

One output is  sum over blocks, ascending:    fma(float(integer dot) * activation scale, weight scale, sum)
               and with minimums:             fma(min, activation scale * sum of codes, sum)
        and then  over outliers, ascending:   fma(weight code * weight scale, 128 * high part * activation scale, sum)
in every tile, so that its bits do not depend on the tile. Outliers are few: outliers.py lists them, and adds them token
by token where they are. (A branch in the loop over blocks, and all tokens of the tile behind it, made
SmolLM2's prefill a third slower.)
"""

from collections.abc import Callable
from typing import Any

from edgellm.kernels.ops import INT4_ASYM, INT8, META_BYTES
from edgellm.kernels.simd.arithmetic import (
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
    load_i32,
    load_u8x64,
    prefetch,
    prefetch_l2,
    store_f32x16,
)
from edgellm.kernels.simd.vectors import f32x16, i32x16, u8x64
from edgellm.kernels.targets import Tile

# A tile asks for as much of the next panel as it reads of this one. (Asking for what lies 6 KB ahead left the memory
# idle in the second pass of a tile of half a panel: products of 8 and 12 rows took a sixth to a quarter longer.) Up to
# 2 tokens run at the memory's speed, and there the second cache is the better place: the first holds no two panels of
# long rows.
STREAMING_TOKENS = 2
TileKernel = Callable[..., None]  # arguments in `tile` below


def make_tile(layout: int, shape: Tile) -> TileKernel:
    """A panel of a layout times as many rows as the shape is high, in one tile or two: arguments in `tile` below."""
    halves, tokens = shape
    zero_sums, zero_dots = zero_tile(f32x16, halves * tokens), zero_tile(i32x16, halves * tokens)
    zero_sums_4, zero_weights = zero_tile(sums_4, halves * tokens), zero_tile(u8x64, halves)
    has_mins, is_int8 = layout == INT4_ASYM, layout == INT8
    half_bytes = 512 if is_int8 else 256
    ask_for = prefetch_l2 if tokens <= STREAMING_TOKENS else prefetch
    begin_plane = 0 if has_mins else 8 * tokens  # -8 * sum; unused with minimums

    @inlined
    def dots_4(codes: int, x: int, meta: int) -> Any:
        dot = zero_sums_4()
        if not has_mins:
            for t in range(tokens):
                begin = broadcast_i32(meta + begin_plane + t * 4)
                for h in range(halves):
                    dot = put(dot, h * tokens + t, begin_4(begin))
        for j in range(4):
            low, high = zero_weights(), zero_weights()
            for h in range(halves):
                pairs = load_u8x64(codes + h * half_bytes + j * 64)
                low, high = put(low, h, low_nibbles(pairs)), put(high, h, high_nibbles(pairs))
            # Tokens outside, halves inside: an activation is broadcast once and needed no longer.
            for t in range(tokens):
                x_low, x_high = broadcast_4_bytes(x + t * 32 + j * 4), broadcast_4_bytes(x + t * 32 + j * 4 + 16)
                for h in range(halves):
                    d = dot_4(dot[h * tokens + t], low[h], x_low)
                    dot = put(dot, h * tokens + t, dot_4(d, high[h], x_high))
        done = zero_dots()
        for t in range(tokens):
            begin = splat_i32(0) if has_mins else broadcast_i32(meta + begin_plane + t * 4)
            for h in range(halves):
                done = put(done, h * tokens + t, end_4(dot[h * tokens + t], begin))
        return done

    @inlined
    def dots_8(codes: int, x: int, meta: int) -> Any:
        dot = zero_dots()
        for t in range(tokens):
            begin = begin_8(load_i32(meta + 12 * tokens + t * 4))
            for h in range(halves):
                dot = put(dot, h * tokens + t, begin)
        for j in range(8):
            u = zero_weights()
            for h in range(halves):
                u = put(u, h, load_u8x64(codes + h * half_bytes + j * 64))
            for t in range(tokens):
                x_here = broadcast_4_bytes(x + t * 32 + j * 4)
                for h in range(halves):
                    dot = put(dot, h * tokens + t, dot_8(dot[h * tokens + t], u[h], x_here))
        return dot

    dots = dots_8 if is_int8 else dots_4

    @kernel
    def tile(
        codes: int, scales: int, mins: int, x: int, meta: int, blocks: int, group_shift: int, out: int, ahead: int
    ) -> None:
        """out float32 [tokens][32], the first 16 * halves of each row; group_shift = log2(blocks of a group)."""
        total = zero_sums()
        for block in range(blocks):
            if ahead:
                for line in range(0, halves * half_bytes, 64):
                    ask_for(ahead + line)
                ahead += halves * half_bytes
            dot = dots(codes, x, meta)
            group = (block >> group_shift) * 64
            for h in range(halves):
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
            meta += META_BYTES * tokens
        for h in range(halves):
            for t in range(tokens):
                store_f32x16(out + t * 128 + h * 64, total[h * tokens + t])

    @kernel
    def panel(
        codes: int, scales: int, mins: int, x: int, meta: int, blocks: int, group_shift: int, out: int, ahead: int
    ) -> None:
        """out float32 [tokens][32]; asks for as many bytes as the panel has from `ahead`."""
        for h in range(0, 2, halves):
            c, s, m = codes + h * half_bytes, scales + h * 32, mins + h * 32
            tile(c, s, m, x, meta, blocks, group_shift, out + h * 64, ahead + h * blocks * half_bytes if ahead else 0)

    made: TileKernel = panel
    return made
