"""What becomes of the outputs of a matrix product: stored, added, rotated, into the KV cache, activated.

An epilogue takes 32 outputs of a few rows while they are in the cache.
"""

from typing import Any

from edgellm.kernels.cpu.math import silu
from edgellm.kernels.cpu.quantize import clear_slots, quantize_block, quantize_kv
from edgellm.kernels.cpu.rows import SEQUENCES, kv_address
from edgellm.kernels.layouts import BLOCK
from edgellm.kernels.ops import ADD, KEY, KV_BLOCK, META_BYTES, PART, QUERY, STEP, STORE, SWIGLU
from edgellm.kernels.simd.arithmetic import fma, splat_f32, swap_pairs
from edgellm.kernels.simd.bfloat import scatter_bf16, scatter_pairs, to_bf16
from edgellm.kernels.simd.hadamard import hadamard
from edgellm.kernels.simd.kernel import inlined, kernel
from edgellm.kernels.simd.memory import (
    f32_from_bits,
    load_f32x16,
    load_i32,
    load_i64,
    scatter_i8,
    store_f32x16,
    store_i8x16,
)

POSITIONS = STEP.positions
EPILOGUE, OUT, OUT_META, STRIDE = PART.epilogue, PART.out, PART.out_meta, PART.stride
ROPE, HEAD_SIZE, SCALE = PART.rope, PART.head_size, PART.scale
KV_OFFSET, HEAD_STRIDE, BLOCK_STRIDE, KV_INT8 = PART.kv_offset, PART.head_stride, PART.block_stride, PART.kv_int8


@kernel
def rotated(y: int, rope: int, head_size: int, position: int, entry: int) -> Any:
    """16 outputs from `entry` of a head, rotated: rope float32 [position][2][E], cosines, then sines with signs."""
    table = rope + (position * 2 * head_size + entry) * 4
    v = load_f32x16(y)
    return fma(v, load_f32x16(table), swap_pairs(v) * load_f32x16(table + head_size * 4))


@inlined
def turned(part: int, y: int, position: int, entry: int) -> Any:
    """32 outputs of a head, of queries or keys, from `entry`: rotated, and transformed where keys are INT8."""
    rope, head_size = load_i64(part + ROPE), load_i64(part + HEAD_SIZE)
    low, high = rotated(y, rope, head_size, position, entry), rotated(y + 64, rope, head_size, position, entry + 16)
    if load_i64(part + KV_INT8):
        low, high = hadamard(low, high)
    return low, high


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
        low, high = turned(part, y, position, entry)
    if load_i64(part + KV_INT8):
        scales = base + 2 * at_values + (0 if is_key else head_size * 2) + (entry + slot) * 2
        low, high = quantize_kv(low, high, scales)
        if is_key:
            scatter_i8(base + entry * KV_BLOCK + slot, low, KV_BLOCK)
            scatter_i8(base + (entry + 16) * KV_BLOCK + slot, high, KV_BLOCK)
        else:
            store_i8x16(base + at_values + slot * head_size + entry, low)
            store_i8x16(base + at_values + slot * head_size + entry + 16, high)
    elif is_key:
        to = base + (entry * KV_BLOCK + slot * 2) * 2
        scatter_pairs(to, to_bf16(low), KV_BLOCK * 4)
        scatter_pairs(to + 32 * KV_BLOCK, to_bf16(high), KV_BLOCK * 4)
    else:
        to = base + at_values * 2 + (slot & -2) * head_size * 2 + (slot & 1) * 2 + entry * 4
        scatter_bf16(to, to_bf16(low), 4)
        scatter_bf16(to + 64, to_bf16(high), 4)


@kernel
def finish(part: int, step: int, y: int, up: int, start: int, tokens: int, rows: int, panel: int) -> None:
    """The epilogue of a tile of `tokens`: y float32 [rows][32] are outputs 32 * panel.. of rows start.. ."""
    epilogue, out, stride = load_i64(part + EPILOGUE), load_i64(part + OUT), load_i64(part + STRIDE)
    first = panel * BLOCK
    for t in range(rows):
        row, at = start + t, y + t * 128
        to = out + (row * stride + first) * 4
        if epilogue == STORE:
            store_f32x16(to, load_f32x16(at))
            store_f32x16(to + 64, load_f32x16(at + 64))
        elif epilogue == ADD:
            store_f32x16(to, load_f32x16(to) + load_f32x16(at))
            store_f32x16(to + 64, load_f32x16(to + 64) + load_f32x16(at + 64))
        elif epilogue == QUERY:
            scale = splat_f32(f32_from_bits(load_i64(part + SCALE)))
            position = load_i32(load_i64(step + POSITIONS) + row * 4)
            low, high = turned(part, at, position, first % load_i64(part + HEAD_SIZE))
            store_f32x16(to, low * scale)
            store_f32x16(to + 64, high * scale)
        elif epilogue == SWIGLU:
            also = up + t * 128
            low = silu(load_f32x16(at)) * load_f32x16(also)
            high = silu(load_f32x16(at + 64)) * load_f32x16(also + 64)
            codes = out + start * stride + panel * tokens * BLOCK + t * BLOCK
            meta = load_i64(part + OUT_META) + (start * (stride >> 5) + panel * tokens) * META_BYTES + t * 4
            quantize_block(low, high, codes, meta, tokens)
        else:
            into_cache(part, step, at, row, first, epilogue == KEY)
    if epilogue == SWIGLU:
        meta = load_i64(part + OUT_META) + (start * (stride >> 5) + panel * tokens) * META_BYTES
        clear_slots(meta, rows, tokens)
