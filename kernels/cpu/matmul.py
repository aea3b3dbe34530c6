"""Matrix products with what follows them, for one row or many.

The unit of work is a panel: 32 rows of weights, read from memory once and applied to every tile of rows.
Its outputs go through a scratch of the thread's own to an epilogue.
"""

from collections.abc import Callable

from edgellm.kernels.cpu.epilogue import EPILOGUE, finish
from edgellm.kernels.cpu.outliers import ENTRY_BYTES, list_outliers, make_add_outliers
from edgellm.kernels.cpu.rows import HEIGHTS, TALLEST, first_of, log2_blocks, own_copy, rows_of, tile_height
from edgellm.kernels.cpu.tiles import make_tile
from edgellm.kernels.layouts import BLOCK
from edgellm.kernels.ops import INT4, INT4_ASYM, INT8, MATMUL, MAX_TILE_ROWS, META_BYTES, PART, SWIGLU
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import load_i32, load_i64, store_i32
from edgellm.kernels.simd.vectors import selected
from edgellm.kernels.targets import Tile


def make_product(layout: int) -> Callable[..., None]:
    """out float32 [tokens][32] = 32 rows of weights of a layout times a tile of rows of any height."""
    tiles = {height: make_tile(layout, Tile(selected().halves(height), height)) for height in HEIGHTS}
    one, two, full = tiles[1], tiles[2], tiles[TALLEST]
    four, eight = tiles.get(4, full), tiles.get(8, full)

    @kernel
    def product(
        codes: int, scales: int, mins: int, x: int, meta: int, blocks: int, group_shift: int, out: int, tokens: int,
        ahead: int,
    ) -> None:  # fmt: skip
        if tokens == 1:
            one(codes, scales, mins, x, meta, blocks, group_shift, out, ahead)
        elif tokens == 2:
            two(codes, scales, mins, x, meta, blocks, group_shift, out, ahead)
        elif tokens == 4:
            four(codes, scales, mins, x, meta, blocks, group_shift, out, ahead)
        elif tokens == 8:
            eight(codes, scales, mins, x, meta, blocks, group_shift, out, ahead)
        else:
            full(codes, scales, mins, x, meta, blocks, group_shift, out, ahead)

    made: Callable[..., None] = product
    return made


product_int4, product_int4_asym, product_int8 = (make_product(layout) for layout in (INT4, INT4_ASYM, INT8))
add_outliers_int4, add_outliers_int4_asym, add_outliers_int8 = (
    make_add_outliers(layout) for layout in (INT4, INT4_ASYM, INT8)
)

PART_BYTES = 8 * len(PART.names)
PARTS, PART_COUNT, CODES, META_AT = MATMUL.parts, MATMUL.part_count, MATMUL.codes, MATMUL.meta
OWN_CODES, OWN_META = MATMUL.own_codes, MATMUL.own_meta
OUTLIERS, OUTLIERS_STRIDE = MATMUL.outliers, MATMUL.outliers_stride
COLUMNS, SELECTED, SCRATCH, SCRATCH_STRIDE = MATMUL.columns, MATMUL.selected, MATMUL.scratch, MATMUL.scratch_stride
PANELS = PART.panels
WEIGHT, UP_WEIGHT = PART.layout, PART.up_layout  # five words each: layout, codes, scales, mins, group


@kernel
def multiply(
    weight: int, panel: int, x: int, meta: int, blocks: int, tokens: int, out: int, outliers: int, count: int,
    first_tile: int,
) -> None:  # fmt: skip
    """out [tokens][32] = a panel of the weight, at its five words, times the tile with its `count` outliers.

    The first tile of rows asks for the next panel; the others find this one in the cache.
    """
    layout, codes, scales = load_i64(weight), load_i64(weight + 8), load_i64(weight + 16)
    mins, shift = load_i64(weight + 24), log2_blocks(load_i64(weight + 32))
    size = blocks * (1024 if layout == INT8 else 512)
    codes += panel * size
    ahead = codes + size if first_tile else 0
    scales += panel * (blocks >> shift) * 64
    mins += panel * (blocks >> shift) * 64
    if layout == INT8:
        product_int8(codes, scales, mins, x, meta, blocks, shift, out, tokens, ahead)
        add_outliers_int8(codes, scales, shift, out, outliers, count)
    elif layout == INT4:
        product_int4(codes, scales, mins, x, meta, blocks, shift, out, tokens, ahead)
        add_outliers_int4(codes, scales, shift, out, outliers, count)
    else:
        product_int4_asym(codes, scales, mins, x, meta, blocks, shift, out, tokens, ahead)
        add_outliers_int4_asym(codes, scales, shift, out, outliers, count)


@kernel
def run_part(
    part: int, op: int, step: int, first: int, last: int, all_x: int, all_meta: int, scratch: int, outliers: int
) -> None:
    """Panels first..last of a part, times the activation; outliers as `find_outliers` leaves them."""
    blocks = load_i64(op + COLUMNS) >> 5
    rows = rows_of(step, load_i64(op + SELECTED))
    y, up = scratch, scratch + MAX_TILE_ROWS * BLOCK * 4
    for panel in range(first, last):
        start, entries = 0, outliers
        while start < rows:
            tokens, count = tile_height(rows - start), load_i32(entries)
            x, meta = all_x + start * blocks * BLOCK, all_meta + start * blocks * META_BYTES
            multiply(part + WEIGHT, panel, x, meta, blocks, tokens, y, entries + ENTRY_BYTES, count, start == 0)
            if load_i64(part + EPILOGUE) == SWIGLU:
                multiply(part + UP_WEIGHT, panel, x, meta, blocks, tokens, up, entries + ENTRY_BYTES, count, start == 0)
            finish(part, step, y, up, start, tokens, min(tokens, rows - start), panel)
            start += tokens
            entries += (count + 1) * ENTRY_BYTES


@kernel
def find_outliers(op: int, step: int, all_meta: int, outliers: int) -> None:
    """Lists for every tile of rows, one behind the other: int32 count, then entries. Each thread makes its own."""
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
def matmul(op: int, step: int, thread: int, threads: int) -> None:
    """The panels of all parts in one line, of which each thread takes its share."""
    parts, part_count = load_i64(op + PARTS), load_i64(op + PART_COUNT)
    total = 0
    for i in range(part_count):
        total += load_i64(parts + i * PART_BYTES + PANELS)
    first, last = first_of(total, thread, threads), first_of(total, thread + 1, threads)
    scratch = load_i64(op + SCRATCH) + thread * load_i64(op + SCRATCH_STRIDE)
    outliers = load_i64(op + OUTLIERS) + thread * load_i64(op + OUTLIERS_STRIDE)
    columns = load_i64(op + COLUMNS)
    x = own_copy(step, load_i64(op + CODES), load_i64(op + OWN_CODES), thread, columns)
    meta = own_copy(step, load_i64(op + META_AT), load_i64(op + OWN_META), thread, (columns >> 5) * META_BYTES)
    find_outliers(op, step, meta, outliers)
    before = 0
    for i in range(part_count):
        part = parts + i * PART_BYTES
        panels = load_i64(part + PANELS)
        run_part(part, op, step, max(first - before, 0), min(last - before, panels), x, meta, scratch, outliers)
        before += panels
