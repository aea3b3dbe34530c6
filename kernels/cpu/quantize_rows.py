"""Rows of floats as a matrix product takes them, where no kernel before has quantized them already."""

from edgellm.kernels.cpu.quantize import clear_slots, quantize_block
from edgellm.kernels.cpu.rows import first_of, rows_of, source_row, tile_height, tile_start
from edgellm.kernels.ops import META_BYTES, QUANTIZE
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import load_f32x16, load_i64

X, OUT_CODES, OUT_META = QUANTIZE.x, QUANTIZE.out_codes, QUANTIZE.out_meta
WIDTH, SELECTED = QUANTIZE.width, QUANTIZE.selected


@kernel
def quantize(op: int, step: int, thread: int, threads: int) -> None:
    """Blocks of the rows are shared out, so that threads write to lines of their own."""
    width, only_selected = load_i64(op + WIDTH), load_i64(op + SELECTED)
    rows, blocks = rows_of(step, only_selected), width >> 5
    first, last = first_of(blocks, thread, threads), first_of(blocks, thread + 1, threads)
    for row in range(rows):
        start = tile_start(row)
        tokens, slot = tile_height(rows - start), row - start
        x = load_i64(op + X) + source_row(step, only_selected, row) * width * 4
        codes = load_i64(op + OUT_CODES) + start * width + slot * 32
        meta = load_i64(op + OUT_META) + start * blocks * META_BYTES + slot * 4
        for block in range(first, last):
            low, high = load_f32x16(x + block * 128), load_f32x16(x + block * 128 + 64)
            at = meta + block * tokens * META_BYTES
            quantize_block(low, high, codes + block * tokens * 32, at, tokens)
            if row == rows - 1:
                clear_slots(at - slot * 4, rows - start, tokens)
