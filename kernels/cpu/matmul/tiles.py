"""Register tiles of a matrix product: a panel of weights, or half of one, times a few tokens, over all inputs.

One output is  sum over blocks, ascending:    fma(float(integer dot) * activation scale, weight scale, sum)
               and with minimums:             fma(min, activation scale * sum of codes, sum)
        and then  over outliers, ascending:   fma(weight code * weight scale, 128 * high part * activation scale, sum)
in every tile, so that its bits do not depend on the tile. Outliers are few: outliers.py lists them, and adds them token
by token where they are. (A branch in the loop over blocks, and all tokens of the tile behind it, made
SmolLM2's prefill a third slower.)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from edgellm.kernels.ops import META_BYTES
from edgellm.kernels.simd.arithmetic import f32_from_i32, fma, put, zero_tile
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import broadcast_f32, load_i64, prefetch, prefetch_l2, store_f32x16
from edgellm.kernels.simd.vectors import f32x16
from edgellm.kernels.targets import Tile

# A tile asks for as much of the next panel as it reads of this one. (Asking for what lies 6 KB ahead left the memory
# idle in the second pass of a tile of half a panel: products of 8 and 12 rows took a sixth to a quarter longer.) Up to
# 2 tokens run at the memory's speed, and there the second cache is the better place: the first holds no two panels of
# long rows.
STREAMING_TOKENS = 2
TileKernel = Callable[..., None]  # arguments in `tile` below


class Pieces(NamedTuple):
    """What a weight format gives to the kernels that are made for it: functions to become part of them.

    `at` is what `open_panel` found: three numbers that say where a panel's scales lie. `half` is 0 or 1, the first or
    the last 16 rows of the panel.
    """

    block_bytes: int  # of the codes of a panel, 32 inputs of each of its rows
    codes: int  # offset of the address of all codes in the format's record
    make_dots: Callable[[int, int], Callable[..., Any]]  # halves, tokens -> dots(codes, x, meta), see dots.py
    open_panel: Callable[..., Any]  # (weight record, panel, blocks) -> at
    scale: Callable[..., Any]  # (at, block, half) -> f32x16
    minimum: Callable[..., Any] | None  # likewise, for formats that have minimums
    code: Callable[..., Any]  # (codes of the panel, block, input in it, half) -> f32x16, which the scale multiplies


def make_tile(pieces: Pieces, shape: Tile) -> TileKernel:
    """A panel times as many rows as the shape is high, in one tile or two: arguments in `tile` below."""
    halves, tokens = shape
    zero_sums = zero_tile(f32x16, halves * tokens)
    half_bytes, dots, scale = pieces.block_bytes // 2, pieces.make_dots(halves, tokens), pieces.scale
    has_mins, minimum = pieces.minimum is not None, pieces.minimum or pieces.scale
    ask_for = prefetch_l2 if tokens <= STREAMING_TOKENS else prefetch

    @kernel
    def tile(codes: int, at: Any, first: int, x: int, meta: int, blocks: int, out: int, ahead: int) -> None:
        """out float32 [tokens][32], 16 * halves of each row, from half `first` on."""
        total = zero_sums()
        for block in range(blocks):
            if ahead:
                for line in range(0, halves * half_bytes, 64):
                    ask_for(ahead + line)
                ahead += halves * half_bytes
            dot = dots(codes, x, meta)
            for h in range(halves):
                weight_scale = scale(at, block, first + h)
                for t in range(tokens):
                    scaled = f32_from_i32(dot[h * tokens + t]) * broadcast_f32(meta + t * 4)
                    total = put(total, h * tokens + t, fma(scaled, weight_scale, total[h * tokens + t]))
                if has_mins:
                    low = minimum(at, block, first + h)
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
    def panel(codes: int, at: Any, x: int, meta: int, blocks: int, out: int, ahead: int) -> None:
        """out float32 [tokens][32]; asks for as many bytes as the panel has from `ahead`."""
        for h in range(0, 2, halves):
            half_ahead = ahead + h * blocks * half_bytes if ahead else 0
            tile(codes + h * half_bytes, at, h, x, meta, blocks, out + h * 64, half_ahead)

    made: TileKernel = panel
    return made


def panel_codes(pieces: Pieces) -> Callable[..., Any]:
    """Where the codes of a panel begin."""
    offset, block_bytes = pieces.codes, pieces.block_bytes

    @kernel
    def codes_of(weight: int, panel: int, blocks: int) -> int:
        return load_i64(weight + offset) + panel * blocks * block_bytes

    return codes_of
