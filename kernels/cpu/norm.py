"""RMSNorm and the quantization of its result."""

import numpy as np

from edgellm.kernels.cpu.quantize import clear_slots, quantize_block
from edgellm.kernels.cpu.rows import first_of, own_copy, rows_of, source_row, tile_height, tile_start
from edgellm.kernels.ops import META_BYTES, NORM
from edgellm.kernels.simd.arithmetic import fma, fold_sum, splat_f32, square_root, zero_f32
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import f32_from_bits, load_f32x16, load_i64, prefetch

X, WEIGHT, OUT_CODES, OUT_META = NORM.x, NORM.weight, NORM.out_codes, NORM.out_meta
OWN_CODES, OWN_META = NORM.own_codes, NORM.own_meta
WIDTH, EPSILON, SELECTED = NORM.width, NORM.epsilon, NORM.selected
ONE = np.float32(1.0)


@kernel
def norm_row(
    x: int, ahead: int, weight: int, width: int, epsilon: float, first: int, last: int, codes: int, meta: int,
    tokens: int,
) -> None:  # fmt: skip
    """Blocks first..last of a row into a tile of `tokens` rows.

    Asks for the row at `ahead` meanwhile: another core wrote half of it.
    """
    squares = zero_f32()
    for i in range(width >> 4):
        v = load_f32x16(x + i * 64)
        squares = fma(v, v, squares)
        prefetch(ahead + i * 64)
    inverse = splat_f32(ONE / square_root(fold_sum(squares) / np.float32(width) + epsilon))
    for block in range(first, last):
        at = block * 128
        low = load_f32x16(x + at) * inverse * load_f32x16(weight + at)
        high = load_f32x16(x + at + 64) * inverse * load_f32x16(weight + at + 64)
        quantize_block(low, high, codes + block * tokens * 32, meta + block * tokens * META_BYTES, tokens)


@kernel
def norm(op: int, step: int, thread: int, threads: int) -> None:
    """Blocks of the rows are shared out, so that threads write to lines of their own; few rows each does alone."""
    width, only_selected = load_i64(op + WIDTH), load_i64(op + SELECTED)
    weight, epsilon = load_i64(op + WEIGHT), f32_from_bits(load_i64(op + EPSILON))
    rows, blocks = rows_of(step, only_selected), width >> 5
    shared = load_i64(op + OUT_CODES)
    all_codes = own_copy(step, shared, load_i64(op + OWN_CODES), thread, width)
    all_meta = own_copy(step, load_i64(op + OUT_META), load_i64(op + OWN_META), thread, blocks * META_BYTES)
    alone = all_codes != shared
    first = 0 if alone else first_of(blocks, thread, threads)
    last = blocks if alone else first_of(blocks, thread + 1, threads)
    for row in range(rows):
        start = tile_start(row)
        tokens, slot = tile_height(rows - start), row - start
        x = load_i64(op + X) + source_row(step, only_selected, row) * width * 4
        codes, meta = all_codes + start * width + slot * 32, all_meta + start * blocks * META_BYTES + slot * 4
        ahead = load_i64(op + X) + source_row(step, only_selected, min(row + 1, rows - 1)) * width * 4
        norm_row(x, ahead, weight, width, epsilon, first, last, codes, meta, tokens)
        if row == rows - 1:
            for block in range(first, last):
                clear_slots(meta - slot * 4 + block * tokens * META_BYTES, rows - start, tokens)
