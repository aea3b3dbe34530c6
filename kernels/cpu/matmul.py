"""Matrix products with what follows them, for one row or many.

The unit of work is a panel: 32 rows of weights, read from memory once and applied to every tile of rows.
Its outputs go through a scratch of the thread's own to an epilogue.
"""

from typing import Any

from edgellm.kernels.cpu.math import silu
from edgellm.kernels.cpu.quantize import quantize_block, quantize_kv
from edgellm.kernels.cpu.rows import META, SEQUENCES, first_of, kv_address, own_copy, rows_of, tile_height
from edgellm.kernels.cpu.tiles import ENTRY_BYTES, list_outliers, make_add_outliers, make_product
from edgellm.kernels.layouts import BLOCK
from edgellm.kernels.ops import (
    ADD,
    INT4,
    INT4_ASYM,
    INT8,
    KEY,
    KV_BLOCK,
    MATMUL,
    MAX_TILE_ROWS,
    PART,
    QUERY,
    STEP,
    STORE,
    SWIGLU,
)
from edgellm.kernels.simd.arithmetic import fma, splat_f32, swap_pairs
from edgellm.kernels.simd.bfloat import scatter_bf16, scatter_pairs, to_bf16
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import (
    f32_from_bits,
    load_f32x16,
    load_i32,
    load_i64,
    scatter_i8,
    scatter_i8_pairs,
    store_f32x16,
    store_i32,
)

product_int4, product_int4_asym, product_int8 = (make_product(layout) for layout in (INT4, INT4_ASYM, INT8))
add_outliers_int4, add_outliers_int4_asym, add_outliers_int8 = (
    make_add_outliers(layout) for layout in (INT4, INT4_ASYM, INT8)
)

PART_BYTES = 8 * len(PART.names)
POSITIONS = STEP.positions
PARTS, PART_COUNT, CODES, META_AT = MATMUL.parts, MATMUL.part_count, MATMUL.codes, MATMUL.meta
OWN_CODES, OWN_META = MATMUL.own_codes, MATMUL.own_meta
OUTLIERS, OUTLIERS_STRIDE = MATMUL.outliers, MATMUL.outliers_stride
COLUMNS, SELECTED, SCRATCH, SCRATCH_STRIDE = MATMUL.columns, MATMUL.selected, MATMUL.scratch, MATMUL.scratch_stride
PANELS, EPILOGUE, OUT, OUT_META, STRIDE = PART.panels, PART.epilogue, PART.out, PART.out_meta, PART.stride
ROPE, HEAD_SIZE, SCALE = PART.rope, PART.head_size, PART.scale
KV_OFFSET, HEAD_STRIDE, BLOCK_STRIDE = PART.kv_offset, PART.head_stride, PART.block_stride
KV_INT8 = PART.kv_int8
WEIGHT, UP_WEIGHT = PART.layout, PART.up_layout  # five words each: layout, codes, scales, mins, group


@kernel
def log2_blocks(group: int) -> int:
    """log2 of the blocks in a group of 32, 64 or 128."""
    return group >> 6 if group < 128 else 2


@kernel
def multiply(
    weight: int, panel: int, x: int, meta: int, blocks: int, tokens: int, out: int, outliers: int, count: int
) -> None:
    """out [tokens][32] = a panel of the weight, at its five words, times the tile with its `count` outliers."""
    layout, codes, scales = load_i64(weight), load_i64(weight + 8), load_i64(weight + 16)
    mins, shift = load_i64(weight + 24), log2_blocks(load_i64(weight + 32))
    codes += panel * blocks * (1024 if layout == INT8 else 512)
    scales += panel * (blocks >> shift) * 64
    mins += panel * (blocks >> shift) * 64
    if layout == INT8:
        product_int8(codes, scales, mins, x, meta, blocks, shift, out, tokens)
        add_outliers_int8(codes, scales, shift, out, outliers, count)
    elif layout == INT4:
        product_int4(codes, scales, mins, x, meta, blocks, shift, out, tokens)
        add_outliers_int4(codes, scales, shift, out, outliers, count)
    else:
        product_int4_asym(codes, scales, mins, x, meta, blocks, shift, out, tokens)
        add_outliers_int4_asym(codes, scales, shift, out, outliers, count)


@kernel
def rotated(y: int, rope: int, head_size: int, position: int, entry: int) -> Any:
    """16 outputs from `entry` of a head, rotated: rope float32 [position][2][E], cosines, then sines with signs."""
    table = rope + (position * 2 * head_size + entry) * 4
    v = load_f32x16(y)
    return fma(v, load_f32x16(table), swap_pairs(v) * load_f32x16(table + head_size * 4))


@kernel
def into_cache(part: int, step: int, y: int, row: int, first: int, is_key: int) -> None:
    """32 outputs of a row, keys or values from output `first`, into the KV cache."""
    head_size = load_i64(part + HEAD_SIZE)
    head, entry = first // head_size, first % head_size
    position = load_i32(load_i64(step + POSITIONS) + row * 4)
    sequence = load_i32(load_i64(step + SEQUENCES) + row * 4)
    base = kv_address(step, sequence, position, load_i64(part + KV_OFFSET), load_i64(part + BLOCK_STRIDE))
    base += head * load_i64(part + HEAD_STRIDE)
    slot, at_values = position & (KV_BLOCK - 1), KV_BLOCK * head_size
    low, high = load_f32x16(y), load_f32x16(y + 64)
    if is_key:
        low, high = (
            rotated(y, load_i64(part + ROPE), head_size, position, entry),
            rotated(y + 64, load_i64(part + ROPE), head_size, position, entry + 16),
        )
    if load_i64(part + KV_INT8):
        scales = base + 2 * at_values + (0 if is_key else head_size * 2) + (entry + slot) * 2
        low, high = quantize_kv(low, high, scales)
        to = base + entry * KV_BLOCK + slot * 2 if is_key else base + at_values + (slot & -2) * head_size + entry * 2
        if is_key:
            scatter_i8_pairs(to, low, KV_BLOCK * 2)
            scatter_i8_pairs(to + 16 * KV_BLOCK, high, KV_BLOCK * 2)
        else:
            scatter_i8(to + (slot & 1), low, 2)
            scatter_i8(to + (slot & 1) + 32, high, 2)
    elif is_key:
        to = base + (entry * KV_BLOCK + slot * 2) * 2
        scatter_pairs(to, to_bf16(low), KV_BLOCK * 4)
        scatter_pairs(to + 32 * KV_BLOCK, to_bf16(high), KV_BLOCK * 4)
    else:
        to = base + at_values * 2 + (slot & -2) * head_size * 2 + (slot & 1) * 2 + entry * 4
        scatter_bf16(to, to_bf16(low), 4)
        scatter_bf16(to + 64, to_bf16(high), 4)


@kernel
def finish(part: int, step: int, y: int, up: int, start: int, tokens: int, panel: int) -> None:
    """The epilogue of a tile: y float32 [tokens][32] are outputs 32 * panel.. of rows start.. ."""
    epilogue, out, stride = load_i64(part + EPILOGUE), load_i64(part + OUT), load_i64(part + STRIDE)
    first = panel * BLOCK
    for t in range(tokens):
        row, at = start + t, y + t * 128
        to = out + (row * stride + first) * 4
        if epilogue == STORE:
            store_f32x16(to, load_f32x16(at))
            store_f32x16(to + 64, load_f32x16(at + 64))
        elif epilogue == ADD:
            store_f32x16(to, load_f32x16(to) + load_f32x16(at))
            store_f32x16(to + 64, load_f32x16(to + 64) + load_f32x16(at + 64))
        elif epilogue == QUERY:
            head_size, scale = load_i64(part + HEAD_SIZE), splat_f32(f32_from_bits(load_i64(part + SCALE)))
            position, entry = load_i32(load_i64(step + POSITIONS) + row * 4), first % head_size
            for half in range(2):
                v = rotated(at + half * 64, load_i64(part + ROPE), head_size, position, entry + half * 16)
                store_f32x16(to + half * 64, v * scale)
        elif epilogue == SWIGLU:
            also = up + t * 128
            low = silu(load_f32x16(at)) * load_f32x16(also)
            high = silu(load_f32x16(at + 64)) * load_f32x16(also + 64)
            codes = out + start * stride + panel * tokens * BLOCK + t * BLOCK
            meta = load_i64(part + OUT_META) + (start * (stride >> 5) + panel * tokens) * META + t * 4
            quantize_block(low, high, codes, meta, tokens)
        else:
            into_cache(part, step, at, row, first, epilogue == KEY)


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
            x, meta = all_x + start * blocks * BLOCK, all_meta + start * blocks * META
            multiply(part + WEIGHT, panel, x, meta, blocks, tokens, y, entries + ENTRY_BYTES, count)
            if load_i64(part + EPILOGUE) == SWIGLU:
                multiply(part + UP_WEIGHT, panel, x, meta, blocks, tokens, up, entries + ENTRY_BYTES, count)
            finish(part, step, y, up, start, tokens, panel)
            start += tokens
            entries += (count + 1) * ENTRY_BYTES


@kernel
def find_outliers(op: int, step: int, all_meta: int, outliers: int) -> None:
    """Lists for every tile of rows, one behind the other: int32 count, then entries. Each thread makes its own."""
    blocks = load_i64(op + COLUMNS) >> 5
    rows, start = rows_of(step, load_i64(op + SELECTED)), 0
    while start < rows:
        tokens = tile_height(rows - start)
        count = list_outliers(all_meta + start * blocks * META, blocks, tokens, outliers + ENTRY_BYTES)
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
    meta = own_copy(step, load_i64(op + META_AT), load_i64(op + OWN_META), thread, (columns >> 5) * META)
    find_outliers(op, step, meta, outliers)
    before = 0
    for i in range(part_count):
        part = parts + i * PART_BYTES
        panels = load_i64(part + PANELS)
        run_part(part, op, step, max(first - before, 0), min(last - before, panels), x, meta, scratch, outliers)
        before += panels
