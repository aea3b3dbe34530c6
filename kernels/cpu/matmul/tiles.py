"""Register tiles of a matrix product: a panel of weights, or half of one, times a few tokens, over all inputs.

One output is  sum over runs, ascending:      fma(float(integer dot) * activation scale, weight scale, sum)
               and with minimums:             fma(min, activation scale * sum of codes, sum)
        and then  over outliers, ascending:   fma(weight code * weight scale, 128 * high part * activation scale, sum)
in every tile, so that its bits do not depend on the tile. A run is a block of 32 inputs, or half of one. Outliers are
few: outliers.py lists them, and adds them token by token where they are. (A branch in the loop over blocks, and all
tokens of the tile after it, made SmolLM2's prefill a third slower.)
"""

from collections.abc import Callable
from typing import Any

from edgellm.kernels.cpu.matmul.pieces import Pieces
from edgellm.kernels.ops import META_BYTES
from edgellm.kernels.panels import BLOCK
from edgellm.kernels.simd.arithmetic import f32_from_i32, fma, put, zero_tile
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import broadcast_f32, prefetch, prefetch_l2, store_f32x16
from edgellm.kernels.simd.vectors import f32x16
from edgellm.kernels.targets import Tile

# A tile asks for as much of the next panel as it reads of this one. (Asking for what lies 6 KB ahead left the memory
# idle in the second pass of a tile of half a panel: products of 8 and 12 rows took a sixth to a quarter longer.) Up to
# 2 tokens run at the memory's speed, and there the second cache is the better place: the first holds no two panels of
# long rows.
STREAMING_TOKENS = 2
TileKernel = Callable[..., None]  # arguments in `tile` below


def make_tile(pieces: Pieces, shape: Tile) -> TileKernel:
    """A panel times as many rows as the shape is high, in one tile or two: arguments in `tile` below."""
    halves, tokens = shape
    zero_sums = zero_tile(f32x16, halves * tokens)
    runs, run_inputs, dots, scale = pieces.runs, BLOCK // pieces.runs, pieces.make_dots(halves, tokens), pieces.scale
    half_bytes = pieces.block_bytes // runs // 2
    has_mins, minimum = pieces.minimum is not None, pieces.minimum or pieces.scale
    assert runs == 1 or not has_mins, "an activation has no sums of half a block"
    ask_for = prefetch_l2 if tokens <= STREAMING_TOKENS else prefetch

    @kernel
    def tile(codes: int, at: Any, first: int, x: int, meta: int, blocks: int, out: int, ahead: int) -> None:
        """out float32 [tokens][32], 16 * halves of each row, from half `first` on."""
        total = zero_sums()
        for block in range(blocks):
            for r in range(runs):
                run = block * runs + r
                if ahead:
                    for line in range(0, halves * half_bytes, 64):
                        ask_for(ahead + line)
                    ahead += halves * half_bytes
                dot = dots(codes, x + r * run_inputs, meta)
                for h in range(halves):
                    weight_scale = scale(at, run, first + h)
                    for t in range(tokens):
                        scaled = f32_from_i32(dot[h * tokens + t]) * broadcast_f32(meta + t * 4)
                        total = put(total, h * tokens + t, fma(scaled, weight_scale, total[h * tokens + t]))
                    if has_mins:
                        low = minimum(at, run, first + h)
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
            half_ahead = ahead + h * blocks * runs * half_bytes if ahead else 0
            tile(codes + h * half_bytes, at, h, x, meta, blocks, out + h * 64, half_ahead)

    made: TileKernel = panel
    return made
