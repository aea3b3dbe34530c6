"""Matrix products with what follows them, for one row or many.

The unit of work is a panel: 32 rows of weights, read from memory once and applied to every tile of rows, by the kernel
of the weight's format. Its outputs go through a scratch of the thread's own to an epilogue.
"""

from edgellm.kernels.cpu.matmul.outliers import ENTRY_BYTES, list_outliers
from edgellm.kernels.cpu.rows import first_of, own_copy, rows_of, tile_height
from edgellm.kernels.ops import MAX_TILE_ROWS, META_BYTES, PART, PRODUCT
from edgellm.kernels.panels import BLOCK
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import call_8, call_10, load_i32, load_i64, store_i32

PART_BYTES = 8 * len(PART.names)
PARTS, PART_COUNT, X_CODES, X_META = PRODUCT.parts, PRODUCT.part_count, PRODUCT.x_codes, PRODUCT.x_meta
OWN_CODES, OWN_META = PRODUCT.own_codes, PRODUCT.own_meta
OUTLIERS, OUTLIERS_STRIDE = PRODUCT.outliers, PRODUCT.outliers_stride
COLUMNS, SELECTED, SCRATCH, SCRATCH_STRIDE = PRODUCT.columns, PRODUCT.selected, PRODUCT.scratch, PRODUCT.scratch_stride
WEIGHT, SECOND, PANELS, EPILOGUE, OPERANDS = PART.weight, PART.second, PART.panels, PART.epilogue, PART.operands


@kernel
def run_part(
    part: int, op: int, step: int, first: int, last: int, all_x: int, all_meta: int, scratch: int, outliers: int
) -> None:
    """Panels first..last of a part, times the activation; outliers as `find_outliers` leaves them."""
    blocks = load_i64(op + COLUMNS) >> 5
    rows = rows_of(step, load_i64(op + SELECTED))
    weight, second = load_i64(part + WEIGHT), load_i64(part + SECOND)
    epilogue, operands = load_i64(part + EPILOGUE), load_i64(part + OPERANDS)
    y, other = scratch, scratch + MAX_TILE_ROWS * BLOCK * 4
    for panel in range(first, last):
        start, entries = 0, outliers
        while start < rows:
            tokens, count = tile_height(rows - start), load_i32(entries)
            x, meta, listed = (
                all_x + start * blocks * BLOCK,
                all_meta + start * blocks * META_BYTES,
                entries + ENTRY_BYTES,
            )
            call_10(load_i64(weight), weight, panel, x, meta, blocks, tokens, y, listed, count, start == 0)
            if second:
                call_10(load_i64(second), second, panel, x, meta, blocks, tokens, other, listed, count, start == 0)
            call_8(epilogue, operands, step, y, other, start, tokens, min(tokens, rows - start), panel)
            start += tokens
            entries += (count + 1) * ENTRY_BYTES


@kernel
def find_outliers(op: int, step: int, all_meta: int, outliers: int) -> None:
    """Lists for every tile of rows, one after the other: int32 count, then entries. Each thread makes its own."""
    blocks = load_i64(op + COLUMNS) >> 5
    rows, start = rows_of(step, load_i64(op + SELECTED)), 0
    while start < rows:
        tokens = tile_height(rows - start)
        meta = all_meta + start * blocks * META_BYTES
        count = list_outliers(meta, blocks, tokens, min(tokens, rows - start), outliers + ENTRY_BYTES)
        store_i32(outliers, count)
        start += tokens
        outliers += (count + 1) * ENTRY_BYTES


@kernel
def product(op: int, step: int, thread: int, threads: int) -> None:
    """The panels of all parts in one line, of which each thread takes its share."""
    parts, part_count = load_i64(op + PARTS), load_i64(op + PART_COUNT)
    total = 0
    for i in range(part_count):
        total += load_i64(parts + i * PART_BYTES + PANELS)
    first, last = first_of(total, thread, threads), first_of(total, thread + 1, threads)
    scratch = load_i64(op + SCRATCH) + thread * load_i64(op + SCRATCH_STRIDE)
    outliers = load_i64(op + OUTLIERS) + thread * load_i64(op + OUTLIERS_STRIDE)
    columns = load_i64(op + COLUMNS)
    x = own_copy(step, load_i64(op + X_CODES), load_i64(op + OWN_CODES), thread, columns)
    meta = own_copy(step, load_i64(op + X_META), load_i64(op + OWN_META), thread, (columns >> 5) * META_BYTES)
    find_outliers(op, step, meta, outliers)
    before = 0
    for i in range(part_count):
        part = parts + i * PART_BYTES
        panels = load_i64(part + PANELS)
        run_part(part, op, step, max(first - before, 0), min(last - before, panels), x, meta, scratch, outliers)
        before += panels
