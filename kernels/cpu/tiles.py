"""Register tiles of a matrix product: 16 or 32 rows of weights times up to 6 tokens, over all inputs.

The integer dot of a block is that of the INT8 codes, plus 128 times weight times high part for an outlier (quantize.py).
One output is  sum over blocks, ascending:  fma(float(integer dot) * activation scale, weight scale, sum)
               and with minimums:           fma(min, activation scale * sum of codes, sum)
in every tile, so that its bits do not depend on the tile.
"""

from collections.abc import Callable
from typing import Any

from edgellm.kernels.cpu.rows import HEIGHTS, META
from edgellm.kernels.ops import INT4_ASYM, INT8
from edgellm.kernels.simd.arithmetic import (
    f32_from_i32,
    fma,
    high_nibbles,
    low_nibbles,
    nibbles,
    put,
    shift_left,
    splat_i32,
    zero_tile,
)
from edgellm.kernels.simd.dot import begin_8, dot_4, dot_8
from edgellm.kernels.simd.kernel import inlined, kernel
from edgellm.kernels.simd.memory import (
    broadcast_4_bytes,
    broadcast_f32,
    broadcast_i32,
    load_f16x16,
    load_i32,
    load_u8x64,
    store_f32x16,
)
from edgellm.kernels.simd.vectors import f32x16, i32x16, selected

PANELS = selected().tile.panels
TileKernel = Callable[[int, int, int, int, int, int, int, int], None]


def make_tile(layout: int, tokens: int) -> TileKernel:
    """The tile of a layout and height: arguments in `tile` below."""
    zero_sums, zero_dots = zero_tile(f32x16, PANELS * tokens), zero_tile(i32x16, PANELS * tokens)
    has_mins, is_int8 = layout == INT4_ASYM, layout == INT8
    block_bytes = 512 if is_int8 else 256
    begin_plane = 0 if has_mins else 8 * tokens  # -8 * sum; unused with minimums

    @inlined
    def dots_4(codes: int, panel_stride: int, x: int, meta: int) -> Any:
        dot = zero_dots()
        if not has_mins:
            for t in range(tokens):
                begin = broadcast_i32(meta + begin_plane + t * 4)
                for p in range(PANELS):
                    dot = put(dot, p * tokens + t, begin)
        for j in range(4):
            for p in range(PANELS):
                pairs = load_u8x64(codes + p * panel_stride + j * 64)
                low, high = low_nibbles(pairs), high_nibbles(pairs)
                for t in range(tokens):
                    d = dot_4(dot[p * tokens + t], low, broadcast_4_bytes(x + t * 32 + j * 4))
                    d = dot_4(d, high, broadcast_4_bytes(x + t * 32 + j * 4 + 16))
                    dot = put(dot, p * tokens + t, d)
        return dot

    @inlined
    def dots_8(codes: int, panel_stride: int, x: int, meta: int) -> Any:
        dot = zero_dots()
        for t in range(tokens):
            begin = begin_8(meta + 12 * tokens + t * 4)
            for p in range(PANELS):
                dot = put(dot, p * tokens + t, begin)
        for j in range(8):
            for p in range(PANELS):
                u = load_u8x64(codes + p * panel_stride + j * 64)
                for t in range(tokens):
                    d = dot_8(dot[p * tokens + t], u, broadcast_4_bytes(x + t * 32 + j * 4))
                    dot = put(dot, p * tokens + t, d)
        return dot

    dots = dots_8 if is_int8 else dots_4

    @inlined
    def with_outliers(dot: Any, codes: int, panel_stride: int, meta: int) -> Any:
        for t in range(tokens):
            high_part = broadcast_4_bytes(meta + 16 * tokens + t * 4)
            place = load_i32(meta + 20 * tokens + t * 4)
            for p in range(PANELS):
                if is_int8:
                    u = load_u8x64(codes + p * panel_stride + ((place >> 2) << 6))
                    product = dot_8(splat_i32(0), u, high_part)
                else:
                    u = load_u8x64(codes + p * panel_stride + ((place & 12) << 4))
                    product = dot_4(splat_i32(0), nibbles(u, place >> 4), high_part)
                dot = put(dot, p * tokens + t, dot[p * tokens + t] + shift_left(product, 7))
        return dot

    @inlined
    def any_outlier(meta: int) -> bool:
        words = 0
        for t in range(tokens):
            words |= load_i32(meta + 16 * tokens + t * 4)
        return words != 0

    @kernel
    def tile(codes: int, scales: int, mins: int, x: int, meta: int, blocks: int, group_shift: int, out: int) -> None:
        """out float32 [tokens][32], the first 16 * PANELS of a row; group_shift = log2(blocks of a group)."""
        total = zero_sums()
        panel_stride = blocks * block_bytes
        scale_stride = (blocks >> group_shift) * 32
        for block in range(blocks):
            dot = dots(codes, panel_stride, x, meta)
            if any_outlier(meta):
                dot = with_outliers(dot, codes, panel_stride, meta)
            group = (block >> group_shift) * 32
            for p in range(PANELS):
                scale = load_f16x16(scales + p * scale_stride + group)
                for t in range(tokens):
                    scaled = f32_from_i32(dot[p * tokens + t]) * broadcast_f32(meta + t * 4)
                    total = put(total, p * tokens + t, fma(scaled, scale, total[p * tokens + t]))
                if has_mins:
                    low = load_f16x16(mins + p * scale_stride + group)
                    for t in range(tokens):
                        sums = broadcast_f32(meta + 4 * tokens + t * 4)
                        total = put(total, p * tokens + t, fma(low, sums, total[p * tokens + t]))
            codes += block_bytes
            x += 32 * tokens
            meta += META * tokens
        for p in range(PANELS):
            for t in range(tokens):
                store_f32x16(out + t * 128 + p * 64, total[p * tokens + t])

    made: TileKernel = tile
    return made


def make_product(layout: int) -> Callable[..., None]:
    """out float32 [tokens][32] = 32 rows of weights of a layout times a tile of rows of any height."""
    full = make_tile(layout, HEIGHTS[0])
    one = make_tile(layout, 1)
    two = make_tile(layout, 2)
    four = make_tile(layout, 4) if HEIGHTS[0] > 4 else full
    block_bytes = 512 if layout == INT8 else 256

    @kernel
    def product(
        codes: int, scales: int, mins: int, x: int, meta: int, blocks: int, group_shift: int, out: int, tokens: int
    ) -> None:
        for p in range(0, 2, PANELS):
            c = codes + p * blocks * block_bytes
            s = scales + p * (blocks >> group_shift) * 32
            m = mins + p * (blocks >> group_shift) * 32
            to = out + p * 64
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
