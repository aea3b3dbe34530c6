"""Attention of a few queries to one chunk of positions: scores, what becomes of them, and the values they weigh."""

from typing import Any

import numpy as np

from edgellm.kernels.cpu.attention_blocks import (
    FEW,
    PAIR_BYTES,
    add_values,
    score_block,
    score_two_blocks,
    store_pairs,
)
from edgellm.kernels.cpu.attention_int8 import add_values_int8, prefetch_int8, score_int8
from edgellm.kernels.cpu.math import exp2
from edgellm.kernels.cpu.rows import SEQUENCES, kv_address
from edgellm.kernels.ops import ATTEND, CHUNK, KV_BLOCK, RESULT_HEADER, STEP
from edgellm.kernels.simd.arithmetic import (
    both,
    choose,
    choose_i32,
    fold_max,
    fold_sum,
    lane_numbers,
    less,
    maximum,
    splat_f32,
    splat_i32,
    zero_f32,
)
from edgellm.kernels.simd.bfloat import (
    from_bf16,
    round_to_bf16,
)
from edgellm.kernels.simd.kernel import inlined, kernel
from edgellm.kernels.simd.memory import (
    load_f32x16,
    load_i32,
    load_i64,
    store_f32,
    store_f32x16,
)

HEADS, KV_HEADS, HEAD_SIZE, KV_INT8, WINDOW = (
    ATTEND.heads, ATTEND.kv_heads, ATTEND.head_size, ATTEND.kv_int8, ATTEND.window,
)  # fmt: skip
KV_OFFSET, HEAD_STRIDE, BLOCK_STRIDE = ATTEND.kv_offset, ATTEND.head_stride, ATTEND.block_stride
POSITIONS = STEP.positions
WEIGHT_BYTES = PAIR_BYTES // 2
LOWEST = np.float32(-np.inf)


@inlined
def seen(i: int, hidden: int, visible: int) -> Any:
    """Which of the positions i..i+15 are among hidden..visible-1."""
    lanes = lane_numbers()
    return both(less(splat_i32(hidden - 1 - i), lanes), less(lanes, splat_i32(visible - i)))


@kernel
def soften(scores: int, hidden: int, visible: int, width: int, result: int) -> None:
    """scores float32 [width] become weights, pairs [width/2]; m and l into the result.

    A weight is 2^(score - m), and 0 but for hidden..visible-1; l sums the weights as they were rounded.
    """
    largest = splat_f32(LOWEST)
    for i in range(0, width, 16):
        score = load_f32x16(scores + i * 4)
        if i < hidden or i + 16 > visible:
            score = choose(seen(i, hidden, visible), score, splat_f32(LOWEST))
        largest = maximum(score, largest)
    m = fold_max(largest)
    top, total = splat_f32(m), zero_f32()
    for i in range(0, width, 16):
        bits = round_to_bf16(exp2(load_f32x16(scores + i * 4) - top))
        if i < hidden or i + 16 > visible:
            bits = choose_i32(seen(i, hidden, visible), bits, splat_i32(0))
        store_pairs(scores + i * WEIGHT_BYTES, bits)
        total = total + from_bf16(bits)
    store_f32(result, m)
    store_f32(result + 4, fold_sum(total))


@kernel
def attend_chunk(
    op: int, step: int, chunk: int, row: int, count: int, kv_head: int, queries: int, scores: int, results: int,
    scratch: int,
) -> None:  # fmt: skip
    """(m, l, o) of a chunk for every query of a unit; l = 0 where a query sees nothing of it.

    queries, pairs [.][QUERY_STRIDE], scores float32 [.][CHUNK], results float32 [.][RESULT_HEADER + E]
    """
    head_size, group = load_i64(op + HEAD_SIZE), load_i64(op + HEADS) // load_i64(op + KV_HEADS)
    window, is_int8 = load_i64(op + WINDOW), load_i64(op + KV_INT8)
    result_stride = RESULT_HEADER + head_size
    kv_offset = load_i64(op + KV_OFFSET) + kv_head * load_i64(op + HEAD_STRIDE)
    block_stride = load_i64(op + BLOCK_STRIDE)
    sequence = load_i32(load_i64(step + SEQUENCES) + row * 4)
    position = load_i32(load_i64(step + POSITIONS) + row * 4)
    begin = chunk * CHUNK
    width = min(CHUNK, position + count - begin)
    # Blocks in front of the first row's window are in nobody's
    start = max(0, position - window + 1 - begin) & -KV_BLOCK if window else 0
    at = start
    while at < width:
        keys = kv_address(step, sequence, begin + at, kv_offset, block_stride)
        if is_int8:
            if at + KV_BLOCK < width:
                following = kv_address(step, sequence, begin + at + KV_BLOCK, kv_offset, block_stride)
                prefetch_int8(following, 0, head_size)
            score_int8(queries, count * group, keys, head_size, scratch, scores + at * 4)
            at += KV_BLOCK
        elif count * group <= FEW and at + KV_BLOCK < width:
            more_keys = kv_address(step, sequence, begin + at + KV_BLOCK, kv_offset, block_stride)
            score_two_blocks(queries, count * group, keys, more_keys, head_size, scores + at * 4)
            at += 2 * KV_BLOCK
        else:
            score_block(queries, count * group, keys, head_size, scores + at * 4)
            at += KV_BLOCK
    padded = (width + KV_BLOCK - 1) // KV_BLOCK * KV_BLOCK
    for i in range(count * group):
        result = results + i * result_stride * 4
        visible = position + i // group + 1 - begin
        hidden = max(visible - window, 0) if window else 0
        soften(scores + (i * CHUNK + start) * 4, hidden - start, visible - start, padded - start, result)
        for entry in range(0, head_size, 16):
            store_f32x16(result + (RESULT_HEADER + entry) * 4, zero_f32())
    for at in range(start, width, KV_BLOCK):
        block = kv_address(step, sequence, begin + at, kv_offset, block_stride)
        pairs = (min(KV_BLOCK, width - at) + 1) >> 1
        weights, out = scores + start * 4 + (at - start) * WEIGHT_BYTES, results + RESULT_HEADER * 4
        if is_int8:
            if at + KV_BLOCK < width:
                following = kv_address(step, sequence, begin + at + KV_BLOCK, kv_offset, block_stride)
                prefetch_int8(following, 1, head_size)
            add_values_int8(weights, count * group, block, head_size, pairs, scratch, out, result_stride)
        else:
            values = block + head_size * KV_BLOCK * 2
            add_values(weights, count * group, values, head_size, pairs, out, result_stride)
