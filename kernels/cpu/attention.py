"""Causal attention over the KV cache, with grouped heads stacked as rows.

Positions are taken in chunks of CHUNK, from 0. A chunk of a query gives (m, l, o): the largest score, the sum of
2^(score - m), and the sum of 2^(score - m) * value; queries come scaled by log2(e), which makes it the softmax. Chunks
are folded into one another in ascending order (online softmax; Milakov and Gimelshein, arXiv 1805.02867), by one thread
or after several have worked: the same bits.

A unit of work is a span (neighbouring rows of a sequence) and a key/value head: `count * G` query vectors, which are
rows i of a small matrix product with the keys (16 positions in the lanes) and then with the values, in bf16 with
float32 sums.
"""

from typing import Any

import numpy as np

from edgellm.kernels.cpu.attention_blocks import PAIR_BYTES, store_pairs
from edgellm.kernels.cpu.attention_chunk import attend_chunk
from edgellm.kernels.cpu.math import exp2
from edgellm.kernels.cpu.quantize import quantize_block
from edgellm.kernels.cpu.rows import tile_height, tile_start
from edgellm.kernels.layouts import BLOCK
from edgellm.kernels.ops import ATTEND, CHUNK, META_BYTES, QUERY_STRIDE, RESULT_HEADER, SPAN_QUERIES, STEP
from edgellm.kernels.simd.arithmetic import fold_max, splat_f32
from edgellm.kernels.simd.bfloat import to_bf16
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
HEAD_SIZE, WINDOW = ATTEND.head_size, ATTEND.window
PARTIALS, CHUNKS, SCRATCH, SCRATCH_STRIDE = ATTEND.partials, ATTEND.chunks, ATTEND.scratch, ATTEND.scratch_stride
ROWS, POSITIONS, SPANS, SPAN_COUNT, SPLIT = STEP.rows, STEP.positions, STEP.spans, STEP.span_count, STEP.split
ZERO = np.float32(0.0)


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
        meta = load_i64(op + OUT_META) + (start * (columns >> 5) + block * tokens) * META_BYTES + slot * 4
        quantize_block(load_f32x16(o) / total, load_f32x16(o + 64) / total, codes, meta, tokens)


@kernel
def gather_queries(op: int, row: int, count: int, kv_head: int, group: int, out: int) -> None:
    """The unit's queries, pairs [.][QUERY_STRIDE]: query i is head i % G of row i // G."""
    head_size, heads = load_i64(op + HEAD_SIZE), load_i64(op + HEADS)
    for i in range(count * group):
        q = load_i64(op + Q) + ((row + i // group) * heads + kv_head * group + i % group) * head_size * 4
        for entry in range(0, head_size, 16):
            store_pairs(out + (i * QUERY_STRIDE + entry // 2) * PAIR_BYTES, to_bf16(load_f32x16(q + entry * 4)))


@kernel
def chunks_of(op: int, step: int, row: int, count: int) -> Any:
    """First and end of the chunks that some of the rows row..row+count-1, neighbours of a sequence, see."""
    position, window = load_i32(load_i64(step + POSITIONS) + row * 4), load_i64(op + WINDOW)
    begin = max(0, position - window + 1) // CHUNK if window else 0
    return begin, (position + count - 1) // CHUNK + 1


@kernel
def attend_unit(op: int, step: int, span: int, kv_head: int, scratch: int) -> None:
    """All chunks of a unit, one after the other, and its output."""
    head_size, group = load_i64(op + HEAD_SIZE), load_i64(op + HEADS) // load_i64(op + KV_HEADS)
    row, count = load_i32(load_i64(step + SPANS) + span * 8), load_i32(load_i64(step + SPANS) + span * 8 + 4)
    size, stride = max(SPAN_QUERIES, group), RESULT_HEADER + head_size
    queries = scratch
    scores = queries + size * QUERY_STRIDE * PAIR_BYTES
    chunk_results = scores + size * CHUNK * 4
    results = chunk_results + size * stride * 4
    more = results + size * stride * 4
    gather_queries(op, row, count, kv_head, group, queries)
    begin, end = chunks_of(op, step, row, count)
    for chunk in range(begin, end):
        attend_chunk(op, step, chunk, row, count, kv_head, queries, scores, chunk_results, more)
        for i in range(count * group):
            result = chunk_results + i * stride * 4
            if chunk == begin:
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
    scores = queries + size * QUERY_STRIDE * PAIR_BYTES
    results = scores + size * CHUNK * 4
    gather_queries(op, row, count, kv_head, group, queries)
    attend_chunk(op, step, chunk, row, count, kv_head, queries, scores, results, results + size * stride * 4)
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
            begin, end = chunks_of(op, step, row, count)
            for unit in range(kv_heads * (end - begin)):
                if turn % threads == thread:
                    attend_split_unit(op, step, span, unit % kv_heads, begin + unit // kv_heads, scratch)
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
            begin, end = chunks_of(op, step, row, 1)
            result = partial_at(op, row, head, begin)
            for chunk in range(begin + 1, end):
                fold(result, partial_at(op, row, head, chunk), head_size)
            emit(op, step, result, row, head)
