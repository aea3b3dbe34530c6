"""Causal attention over the KV cache, with grouped heads stacked as rows.

Positions are taken in chunks of CHUNK, from 0. A chunk of a query gives (m, l, o): the largest score, the sum of
2^(score - m), and the sum of 2^(score - m) * value; queries come scaled by log2(e), which makes it the softmax. Chunks
are folded into one another in ascending order (online softmax; Milakov and Gimelshein, arXiv 1805.02867), by one thread
or after several have worked: the same bits.

A unit of work is a span (neighbouring rows of a sequence) and a key/value head: `count * G` query vectors, which are
rows i of a small matrix product with the keys (16 positions in the lanes) and then with the values, in bf16 with
float32 sums.
"""

import numpy as np

from edgellm.kernels.cpu.attention_tiles import FEW, add_values, score_block, score_two_blocks
from edgellm.kernels.cpu.math import exp2
from edgellm.kernels.cpu.quantize import quantize_block
from edgellm.kernels.cpu.rows import META, SEQUENCES, kv_address, tile_height, tile_start
from edgellm.kernels.layouts import BLOCK
from edgellm.kernels.ops import ATTEND, CHUNK, KV_BLOCK, QUERY_STRIDE, RESULT_HEADER, SPAN_QUERIES, STEP
from edgellm.kernels.simd.arithmetic import (
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
from edgellm.kernels.simd.bfloat import from_bf16, round_to_bf16, store_bf16, to_bf16
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import (
    load_f32,
    load_f32x16,
    load_i32,
    load_i64,
    store_f32,
    store_f32x16,
)

Q, OUT_CODES, OUT_META, HEADS, KV_HEADS = ATTEND.q, ATTEND.out_codes, ATTEND.out_meta, ATTEND.heads, ATTEND.kv_heads
HEAD_SIZE, KV_OFFSET, HEAD_STRIDE, BLOCK_STRIDE = (
    ATTEND.head_size, ATTEND.kv_offset, ATTEND.head_stride, ATTEND.block_stride,
)  # fmt: skip
PARTIALS, CHUNKS, SCRATCH, SCRATCH_STRIDE = ATTEND.partials, ATTEND.chunks, ATTEND.scratch, ATTEND.scratch_stride
ROWS, POSITIONS, SPANS, SPAN_COUNT, SPLIT = STEP.rows, STEP.positions, STEP.spans, STEP.span_count, STEP.split
LOWEST = np.float32(-np.inf)
ZERO = np.float32(0.0)


@kernel
def soften(scores: int, visible: int, width: int, result: int) -> None:
    """scores float32 [width], of which `visible` count, become weights bf16 [width]; m and l into the result.

    A weight is 2^(score - m), and 0 behind the visible; l sums the weights as they were rounded.
    """
    whole = max(min(visible, width), 0) & -16
    largest = splat_f32(LOWEST)
    for i in range(0, whole, 16):
        largest = maximum(load_f32x16(scores + i * 4), largest)
    if whole < width:
        seen = less(lane_numbers(), splat_i32(visible - whole))
        largest = maximum(choose(seen, load_f32x16(scores + whole * 4), splat_f32(LOWEST)), largest)
    m = fold_max(largest)
    top, total = splat_f32(m), zero_f32()
    for i in range(0, whole, 16):
        bits = round_to_bf16(exp2(load_f32x16(scores + i * 4) - top))
        store_bf16(scores + i * 2, bits)
        total = total + from_bf16(bits)
    for i in range(whole, width, 16):
        seen = less(lane_numbers(), splat_i32(visible - i))
        bits = choose_i32(seen, round_to_bf16(exp2(load_f32x16(scores + i * 4) - top)), splat_i32(0))
        store_bf16(scores + i * 2, bits)
        total = total + from_bf16(bits)
    store_f32(result, m)
    store_f32(result + 4, fold_sum(total))


@kernel
def fold(into: int, chunk: int, head_size: int) -> None:
    """Fold a later chunk's (m, l, o) into an earlier result."""
    m, m_chunk = load_f32(into), load_f32(chunk)
    m_new = m if m > m_chunk else m_chunk
    keep, take = exp2(splat_f32(m - m_new)), exp2(splat_f32(m_chunk - m_new))
    store_f32(into, m_new)
    both = splat_f32(load_f32(into + 4)) * keep + splat_f32(load_f32(chunk + 4)) * take
    store_f32(into + 4, fold_max(both))
    for at in range(RESULT_HEADER * 4, (RESULT_HEADER + head_size) * 4, 64):
        store_f32x16(into + at, load_f32x16(into + at) * keep + load_f32x16(chunk + at) * take)


@kernel
def copy(into: int, result: int, head_size: int) -> None:
    for at in range(0, (RESULT_HEADER + head_size) * 4, 64):
        store_f32x16(into + at, load_f32x16(result + at))


@kernel
def emit(op: int, step: int, result: int, row: int, head: int) -> None:
    """o / l of a query, quantized, into the activation that the output projection reads."""
    head_size = load_i64(op + HEAD_SIZE)
    columns, rows = load_i64(op + HEADS) * head_size, load_i64(step + ROWS)
    start = tile_start(row, rows)
    tokens, slot = tile_height(rows - start), row - start
    total = splat_f32(load_f32(result + 4))
    for entry in range(0, head_size, BLOCK):
        block = (head * head_size + entry) >> 5
        o = result + (RESULT_HEADER + entry) * 4
        codes = load_i64(op + OUT_CODES) + start * columns + (block * tokens + slot) * BLOCK
        meta = load_i64(op + OUT_META) + (start * (columns >> 5) + block * tokens) * META + slot * 4
        quantize_block(load_f32x16(o) / total, load_f32x16(o + 64) / total, codes, meta, tokens)


@kernel
def gather_queries(op: int, row: int, count: int, kv_head: int, group: int, out: int) -> None:
    """The unit's queries, bf16 [.][QUERY_STRIDE]: query i is head i % G of row i // G."""
    head_size, heads = load_i64(op + HEAD_SIZE), load_i64(op + HEADS)
    for i in range(count * group):
        q = load_i64(op + Q) + ((row + i // group) * heads + kv_head * group + i % group) * head_size * 4
        for entry in range(0, head_size, 16):
            store_bf16(out + (i * QUERY_STRIDE + entry) * 2, to_bf16(load_f32x16(q + entry * 4)))


@kernel
def attend_chunk(
    op: int, step: int, chunk: int, row: int, count: int, kv_head: int, queries: int, scores: int, results: int
) -> None:
    """(m, l, o) of a chunk for every query of a unit; l = 0 where a query sees nothing of it.

    queries bf16 [.][QUERY_STRIDE], scores float32 [.][CHUNK], results float32 [.][RESULT_HEADER + E]
    """
    head_size, group = load_i64(op + HEAD_SIZE), load_i64(op + HEADS) // load_i64(op + KV_HEADS)
    result_stride = RESULT_HEADER + head_size
    kv_offset = load_i64(op + KV_OFFSET) + kv_head * load_i64(op + HEAD_STRIDE)
    block_stride = load_i64(op + BLOCK_STRIDE)
    sequence = load_i32(load_i64(step + SEQUENCES) + row * 4)
    position = load_i32(load_i64(step + POSITIONS) + row * 4)
    begin = chunk * CHUNK
    width = min(CHUNK, position + count - begin)
    at = 0
    while at < width:
        keys = kv_address(step, sequence, begin + at, kv_offset, block_stride)
        if count * group <= FEW and at + KV_BLOCK < width:
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
        soften(scores + i * CHUNK * 4, visible, padded, result)
        for entry in range(0, head_size, 16):
            store_f32x16(result + (RESULT_HEADER + entry) * 4, zero_f32())
    for at in range(0, width, KV_BLOCK):
        values = kv_address(step, sequence, begin + at, kv_offset, block_stride) + head_size * KV_BLOCK * 2
        pairs = (min(KV_BLOCK, width - at) + 1) >> 1
        add_values(scores + at * 2, count * group, values, head_size, pairs, results + RESULT_HEADER * 4, result_stride)


@kernel
def attend_unit(op: int, step: int, span: int, kv_head: int, scratch: int) -> None:
    """All chunks of a unit, one after the other, and its output."""
    head_size, group = load_i64(op + HEAD_SIZE), load_i64(op + HEADS) // load_i64(op + KV_HEADS)
    row, count = load_i32(load_i64(step + SPANS) + span * 8), load_i32(load_i64(step + SPANS) + span * 8 + 4)
    size, stride = max(SPAN_QUERIES, group), RESULT_HEADER + head_size
    queries = scratch
    scores = queries + size * QUERY_STRIDE * 2
    chunk_results = scores + size * CHUNK * 4
    results = chunk_results + size * stride * 4
    gather_queries(op, row, count, kv_head, group, queries)
    last = load_i32(load_i64(step + POSITIONS) + row * 4) + count - 1
    for chunk in range(last // CHUNK + 1):
        attend_chunk(op, step, chunk, row, count, kv_head, queries, scores, chunk_results)
        for i in range(count * group):
            result = chunk_results + i * stride * 4
            if chunk == 0:
                copy(results + i * stride * 4, result, head_size)
            elif load_f32(result + 4) > ZERO:
                fold(results + i * stride * 4, result, head_size)
    for i in range(count * group):
        emit(op, step, results + i * stride * 4, row + i // group, kv_head * group + i % group)


@kernel
def partial_at(op: int, row: int, head: int, chunk: int) -> int:
    """Where a query's result of a chunk waits to be folded: float32 [row][H][chunks][RESULT_HEADER + E]."""
    index = (row * load_i64(op + HEADS) + head) * load_i64(op + CHUNKS) + chunk
    return load_i64(op + PARTIALS) + index * (RESULT_HEADER + load_i64(op + HEAD_SIZE)) * 4


@kernel
def attend_split_unit(op: int, step: int, span: int, kv_head: int, chunk: int, scratch: int) -> None:
    """One chunk of a unit, left for `combine`."""
    head_size, group = load_i64(op + HEAD_SIZE), load_i64(op + HEADS) // load_i64(op + KV_HEADS)
    row, count = load_i32(load_i64(step + SPANS) + span * 8), load_i32(load_i64(step + SPANS) + span * 8 + 4)
    size, stride = max(SPAN_QUERIES, group), RESULT_HEADER + head_size
    queries = scratch
    scores = queries + size * QUERY_STRIDE * 2
    results = scores + size * CHUNK * 4
    gather_queries(op, row, count, kv_head, group, queries)
    attend_chunk(op, step, chunk, row, count, kv_head, queries, scores, results)
    for i in range(count * group):
        to = partial_at(op, row + i // group, kv_head * group + i % group, chunk)
        copy(to, results + i * stride * 4, head_size)


@kernel
def attend(op: int, step: int, thread: int, threads: int) -> None:
    """Units in turn: of few rows a chunk each, to keep every thread busy; of many rows whole."""
    kv_heads = load_i64(op + KV_HEADS)
    scratch = load_i64(op + SCRATCH) + thread * load_i64(op + SCRATCH_STRIDE)
    turn = 0
    for span in range(load_i64(step + SPAN_COUNT)):
        if load_i64(step + SPLIT):
            row = load_i32(load_i64(step + SPANS) + span * 8)
            count = load_i32(load_i64(step + SPANS) + span * 8 + 4)
            chunks = (load_i32(load_i64(step + POSITIONS) + row * 4) + count - 1) // CHUNK + 1
            for unit in range(kv_heads * chunks):
                if turn % threads == thread:
                    attend_split_unit(op, step, span, unit % kv_heads, unit // kv_heads, scratch)
                turn += 1
        else:
            for kv_head in range(kv_heads):
                if turn % threads == thread:
                    attend_unit(op, step, span, kv_head, scratch)
                turn += 1


@kernel
def combine(op: int, step: int, thread: int, threads: int) -> None:
    """Fold the chunks that `attend` left, where it split."""
    if not load_i64(step + SPLIT):
        return
    heads, head_size = load_i64(op + HEADS), load_i64(op + HEAD_SIZE)
    for unit in range(load_i64(step + ROWS) * heads):
        if unit % threads == thread:
            row, head = unit // heads, unit % heads
            last = load_i32(load_i64(step + POSITIONS) + row * 4)
            result = partial_at(op, row, head, 0)
            for chunk in range(1, last // CHUNK + 1):
                fold(result, partial_at(op, row, head, chunk), head_size)
            emit(op, step, result, row, head)
