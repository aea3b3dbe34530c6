"""Rows of a step, tiles of rows, and how work is shared."""

from edgellm.kernels.ops import CACHE, KV_BLOCK, OWN_ROWS, STEP
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import load_i32, load_i64
from edgellm.kernels.simd.vectors import selected

HEIGHTS = selected().heights
TALLEST = HEIGHTS[-1]

FEW = STEP.few
ROWS, LOGIT_COUNT, LOGIT_ROWS = STEP.rows, STEP.logit_count, STEP.logit_rows
POSITIONS, SEQUENCES = STEP.positions, STEP.sequences
CACHE_BLOCKS, CACHE_TABLES, CACHE_TABLE_STRIDE = CACHE.blocks, CACHE.tables, CACHE.table_stride
CACHE_BLOCK_STRIDE, CACHE_OFFSET = CACHE.block_stride, CACHE.offset
CACHE_HEAD_STRIDE, CACHE_HEAD_SIZE = CACHE.head_stride, CACHE.head_size
BLOCK_SHIFT = KV_BLOCK.bit_length() - 1


@kernel
def tile_height(rows_left: int) -> int:
    """Rows that the next tile has room for: the least that holds all that are left, or the most there is."""
    for height in HEIGHTS:
        if rows_left <= height:
            return height
    return TALLEST


@kernel
def rows_of(step: int, only_selected: int) -> int:
    """Rows that an operation works on: all, or those whose logits are wanted."""
    return load_i64(step + LOGIT_COUNT) if only_selected else load_i64(step + ROWS)


@kernel
def source_row(step: int, only_selected: int, row: int) -> int:
    return load_i32(load_i64(step + LOGIT_ROWS) + row * 4) if only_selected else row


@kernel
def own_copy(step: int, shared: int, own: int, thread: int, row_bytes: int) -> int:
    """Where a thread finds an activation of the normalized rows: in a copy of its own when they are few."""
    return own + thread * OWN_ROWS * row_bytes if own and load_i64(step + FEW) else shared


@kernel
def tile_start(row: int) -> int:
    """First row of the tile that holds `row`."""
    return row - row % TALLEST


@kernel
def kv_address(cache: int, sequence: int, position: int) -> int:
    """Where a layer's keys and values of a position's block begin."""
    table = load_i64(cache + CACHE_TABLES) + sequence * load_i64(cache + CACHE_TABLE_STRIDE) * 4
    block = load_i32(table + (position >> BLOCK_SHIFT) * 4)
    return (
        load_i64(cache + CACHE_BLOCKS) + block * load_i64(cache + CACHE_BLOCK_STRIDE) + load_i64(cache + CACHE_OFFSET)
    )


@kernel
def first_of(count: int, thread: int, threads: int) -> int:
    """Begin of a thread's share of `count` units; it ends where the next one's begins."""
    return count * thread // threads
