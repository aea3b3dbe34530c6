"""INT8 keys and values: read as they are for a few queries, through bf16 in a scratch for many; the same bits.

While keys are read, the values after them are asked for, and while values are read, the keys of the thread's next
unit: `ahead` bytes from this block to that one, 0 for none. chunk.py says why.

32 entries of a head have a scale: products are summed over 32 entries, then scaled; and weights are scaled for every
32 entries of the values, and rounded to bf16 once more. Codes are exact in bf16, so many queries share its tiles.
"""

from collections.abc import Callable

from edgellm.kernels.cpu.attention.blocks import (
    PAIR_BYTES,
    add_narrow_values,
    broadcast_pair,
    load_pairs,
    score_block,
    store_pairs,
)
from edgellm.kernels.cpu.attention.tiles import HAS_32_REGISTERS
from edgellm.kernels.ops import CHUNK, KV_BLOCK, QUERY_STRIDE
from edgellm.kernels.panels import BLOCK
from edgellm.kernels.simd.arithmetic import fma, put, variable, zero_f32, zero_tile
from edgellm.kernels.simd.bfloat import from_bf16, join_bf16, load_bf16x16, to_bf16
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import broadcast_f32, load_f32x16, load_i8x16, prefetch_l2, store_f32x16, store_i32x16
from edgellm.kernels.simd.vectors import f32x16

WEIGHT_BYTES = PAIR_BYTES // 2
MOST_DIRECT = 4 if HAS_32_REGISTERS else 0  # queries for which codes are worth no unpacking
Direct = Callable[..., None]


def make_direct_scores(queries: int) -> Direct:
    zeros, pair_of_vectors = zero_tile(f32x16, 2 * queries), zero_tile(f32x16, 2)

    @kernel
    def scores(q: int, keys: int, scales: int, head_size: int, out: int) -> None:
        """q pairs [queries][QUERY_STRIDE], keys int8 [E][32], scales bf16 [E/32][32] -> out float32 [.][CHUNK]"""
        total = zeros()
        for first in range(0, head_size, BLOCK):
            part = zeros()
            for _ in range(BLOCK // 2):
                low, high = pair_of_vectors(), pair_of_vectors()
                for v in range(2):
                    low, high = put(low, v, load_i8x16(keys + v * 16)), put(high, v, load_i8x16(keys + 32 + v * 16))
                for i in range(queries):
                    pair = broadcast_pair(q + i * QUERY_STRIDE * PAIR_BYTES)
                    for v in range(2):
                        at = 2 * i + v
                        part = put(part, at, fma(low[v], pair[0], fma(high[v], pair[1], part[at])))
                prefetch_l2(keys + head_size * KV_BLOCK)
                q += PAIR_BYTES
                keys += 64
            for v in range(2):
                scale = load_bf16x16(scales + (first + v * 16) * 2)
                for i in range(queries):
                    total = put(total, 2 * i + v, fma(part[2 * i + v], scale, total[2 * i + v]))
        for i in range(queries):
            for v in range(2):
                store_f32x16(out + i * CHUNK * 4 + v * 64, total[2 * i + v])

    made: Direct = scores
    return made


def make_direct_values(queries: int) -> Direct:
    zeros, pair_of_vectors = zero_tile(f32x16, 2 * queries), zero_tile(f32x16, 2)

    @kernel
    def values(weights: int, codes: int, ahead: int, head_size: int, pairs: int, out: int, stride: int) -> None:
        """weights float32 [queries][32], scaled, codes int8 [32][E] -> out float32 [queries][stride] += 32 entries"""
        total = zeros()
        for i in range(queries):
            for v in range(2):
                total = put(total, 2 * i + v, load_f32x16(out + i * stride * 4 + v * 64))
        for _ in range(pairs):
            low, high = pair_of_vectors(), pair_of_vectors()
            for v in range(2):
                low = put(low, v, load_i8x16(codes + v * 16))
                high = put(high, v, load_i8x16(codes + head_size + v * 16))
            for i in range(queries):
                first, second = broadcast_f32(weights + i * 128), broadcast_f32(weights + i * 128 + 4)
                for v in range(2):
                    at = 2 * i + v
                    total = put(total, at, fma(low[v], first, fma(high[v], second, total[at])))
            prefetch_l2(codes + ahead - head_size * KV_BLOCK)
            prefetch_l2(codes + ahead - head_size * KV_BLOCK + head_size)
            codes += 2 * head_size
            weights += 8
        for i in range(queries):
            for v in range(2):
                store_f32x16(out + i * stride * 4 + v * 64, total[2 * i + v])

    made: Direct = values
    return made


direct_scores_1, direct_scores_2, direct_scores_3, direct_scores_4 = (make_direct_scores(n) for n in (1, 2, 3, 4))
direct_values_1, direct_values_2, direct_values_3, direct_values_4 = (make_direct_values(n) for n in (1, 2, 3, 4))


@kernel
def prefetch_scales(scales: int, head_size: int) -> None:
    """Those of a block's keys, or of its values."""
    for line in range(0, head_size * 2, 64):
        prefetch_l2(scales + line)


@kernel
def unpack(codes: int, rows: int, width: int, ahead: int, out: int) -> None:
    """int8 [rows][width] -> bf16 [rows/2][width][2]; asks for as much from `ahead` bytes after it."""
    for row in range(0, rows, 2):
        for line in range(0, 2 * width, 64):
            prefetch_l2(codes + row * width + ahead + line)
        for at in range(0, width, 16):
            first = codes + row * width + at
            store_i32x16(out + (row // 2 * width + at) * 4, join_bf16(load_i8x16(first), load_i8x16(first + width)))


@kernel
def score_int8(queries: int, count: int, block: int, head_size: int, scratch: int, scores: int) -> None:
    """Scores of `count` queries against a block of INT8 keys; scratch bf16 [E][KV_BLOCK], float32 [count][CHUNK]."""
    scales = block + 2 * head_size * KV_BLOCK
    prefetch_scales(scales + head_size * 2, head_size)
    if count > MOST_DIRECT:
        score_unpacked(queries, count, block, scales, head_size, scratch, scores)
    elif count == 4:
        direct_scores_4(queries, block, scales, head_size, scores)
    elif count == 3:
        direct_scores_3(queries, block, scales, head_size, scores)
    elif count == 2:
        direct_scores_2(queries, block, scales, head_size, scores)
    else:
        direct_scores_1(queries, block, scales, head_size, scores)


@kernel
def score_unpacked(queries: int, count: int, keys: int, scales: int, head_size: int, scratch: int, scores: int) -> None:
    parts = scratch + head_size * KV_BLOCK * 2
    unpack(keys, head_size, KV_BLOCK, head_size * KV_BLOCK, scratch)
    for first in range(0, head_size, BLOCK):
        part = scratch + first * KV_BLOCK * 2
        score_block(queries + first * WEIGHT_BYTES, count, part, variable(0), variable(0), variable(BLOCK), parts)
        for half in range(0, KV_BLOCK, 16):
            scale = load_bf16x16(scales + (first + half) * 2)
            for i in range(count):
                at = (i * CHUNK + half) * 4
                total = load_f32x16(scores + at) if first else zero_f32()
                store_f32x16(scores + at, fma(load_f32x16(parts + at), scale, total))


@kernel
def add_values_int8(
    weights: int, count: int, block: int, ahead: int, head_size: int, pairs: int, scratch: int, out: int, stride: int
) -> None:
    """out float32 [count][stride] += weights times a block of INT8 values; scratch as above."""
    codes, scales = block + head_size * KV_BLOCK, block + (2 * head_size + head_size // BLOCK * 2) * KV_BLOCK
    scaled = scratch + head_size * KV_BLOCK * 2
    prefetch_scales(scales + ahead - head_size * 2, head_size)
    if count > MOST_DIRECT:
        unpack(codes, pairs * 2, head_size, ahead - head_size * KV_BLOCK, scratch)
    for first in range(0, head_size, BLOCK):
        for half in range(0, KV_BLOCK, 16):
            scale = load_bf16x16(scales + (first + half) * 2)
            for i in range(count):
                at = i * CHUNK * 4 + half * WEIGHT_BYTES
                weight = to_bf16(from_bf16(load_pairs(weights + at)) * scale)
                if count > MOST_DIRECT:
                    store_pairs(scaled + at, weight)
                else:
                    store_f32x16(scaled + i * 128 + half * 4, from_bf16(weight))
        to = out + first * 4
        if count > MOST_DIRECT:
            add_narrow_values(scaled, count, scratch + first * 4, variable(0), head_size, pairs, to, stride)
        elif count == 4:
            direct_values_4(scaled, codes + first, ahead, head_size, pairs, to, stride)
        elif count == 3:
            direct_values_3(scaled, codes + first, ahead, head_size, pairs, to, stride)
        elif count == 2:
            direct_values_2(scaled, codes + first, ahead, head_size, pairs, to, stride)
        else:
            direct_values_1(scaled, codes + first, ahead, head_size, pairs, to, stride)
