"""RMSNorm and the quantization of its result."""

import numpy as np

from edgellm.kernels.cpu.quantize import quantize_block
from edgellm.kernels.cpu.rows import own_copy, rows_of, source_row, tile_height
from edgellm.kernels.ops import META_BYTES, NORM
from edgellm.kernels.simd.arithmetic import fma, fold_sum, splat_f32, square_root, zero_f32
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import f32_from_bits, load_f32x16, load_i64

X, WEIGHT, OUT_CODES, OUT_META = NORM.x, NORM.weight, NORM.out_codes, NORM.out_meta
OWN_CODES, OWN_META = NORM.own_codes, NORM.own_meta
WIDTH, EPSILON, SELECTED = NORM.width, NORM.epsilon, NORM.selected
ONE = np.float32(1.0)


@kernel
def norm_row(x: int, weight: int, width: int, epsilon: float, codes: int, meta: int, tokens: int) -> None:
    squares = zero_f32()
    for i in range(width >> 4):
        v = load_f32x16(x + i * 64)
        squares = fma(v, v, squares)
    inverse = splat_f32(ONE / square_root(fold_sum(squares) / np.float32(width) + epsilon))
    for block in range(width >> 5):
        at = block * 128
        low = load_f32x16(x + at) * inverse * load_f32x16(weight + at)
        high = load_f32x16(x + at + 64) * inverse * load_f32x16(weight + at + 64)
        quantize_block(low, high, codes + block * tokens * 32, meta + block * tokens * META_BYTES, tokens)


@kernel
def norm(op: int, step: int, thread: int, threads: int) -> None:
    """Tiles of rows are shared out in turn, so that no two threads write into one tile; few rows each does alone."""
    width, only_selected = load_i64(op + WIDTH), load_i64(op + SELECTED)
    weight, epsilon = load_i64(op + WEIGHT), f32_from_bits(load_i64(op + EPSILON))
    rows = rows_of(step, only_selected)
    shared = load_i64(op + OUT_CODES)
    all_codes = own_copy(step, shared, load_i64(op + OWN_CODES), thread, width)
    all_meta = own_copy(step, load_i64(op + OUT_META), load_i64(op + OWN_META), thread, (width >> 5) * META_BYTES)
    start, turn = 0, 0
    while start < rows:
        tokens = tile_height(rows - start)
        if all_codes != shared or turn % threads == thread:
            codes, meta = all_codes + start * width, all_meta + start * (width >> 5) * META_BYTES
            for slot in range(tokens):
                x = load_i64(op + X) + source_row(step, only_selected, start + slot) * width * 4
                norm_row(x, weight, width, epsilon, codes + slot * 32, meta + slot * 4, tokens)
        start += tokens
        turn += 1
