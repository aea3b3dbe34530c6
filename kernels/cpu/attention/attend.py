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

from edgellm.kernels.cpu.attention.blocks import PAIR_BYTES, store_pairs
from edgellm.kernels.cpu.attention.chunk import attend_chunk
from edgellm.kernels.cpu.math import exp2
from edgellm.kernels.cpu.quantize import clear_slots, quantize_block
from edgellm.kernels.cpu.rows import first_of, tile_height, tile_start
from edgellm.kernels.ops import ATTEND, CHUNK, META_BYTES, QUERY_STRIDE, RESULT_HEADER, SPAN_QUERIES, STEP
from edgellm.kernels.panels import BLOCK
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
def quantize_output(op: int, step: int, result: int, row: int, head: int) -> None:
    """o / l of a query, quantized, into the activation that the output projection reads."""
    head_size = load_i64(op + HEAD_SIZE)
    columns, rows = load_i64(op + HEADS) * head_size, load_i64(step + ROWS)
    start = tile_start(row)
    tokens, slot = tile_height(rows - start), row - start
    total = splat_f32(load_f32(result + 4))
    for entry in range(0, head_size, BLOCK):
        block = (head * head_size + entry) >> 5
        o = result + (RESULT_HEADER + entry) * 4
        codes = load_i64(op + OUT_CODES) + start * columns + (block * tokens + slot) * BLOCK
        meta = load_i64(op + OUT_META) + (start * (columns >> 5) + block * tokens) * META_BYTES + slot * 4
        quantize_block(load_f32x16(o) / total, load_f32x16(o + 64) / total, codes, meta, tokens)
        if row == rows - 1:
            clear_slots(meta - slot * 4, rows - start, tokens)


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
    size, stride = max(SPAN_QUERIES, group), (RESULT_HEADER + head_size) * 4
    queries = scratch
    scores = queries + size * QUERY_STRIDE * PAIR_BYTES
    results = scores + size * CHUNK * 4
    more_results = results + size * stride
    more = more_results + size * stride
    gather_queries(op, row, count, kv_head, group, queries)
    begin, end = chunks_of(op, step, row, count)
    attend_chunk(op, step, begin, row, count, kv_head, queries, scores, results, more, begin + 1, kv_head)
    for chunk in range(begin + 1, end):
        attend_chunk(op, step, chunk, row, count, kv_head, queries, scores, more_results, more, chunk + 1, kv_head)
        for i in range(count * group):
            if load_f32(more_results + i * stride + 4) > ZERO:
                fold(results + i * stride, more_results + i * stride, head_size)
    for i in range(count * group):
        quantize_output(op, step, results + i * stride, row + i // group, kv_head * group + i % group)


@kernel
def partial_at(op: int, step: int, kv_head: int, chunk: int, row: int) -> int:
    """Where results of a chunk wait to be folded: float32 [K][chunks][R][G][RESULT_HEADER + E]."""
    kv_heads, rows = load_i64(op + KV_HEADS), load_i64(step + ROWS)
    index = ((kv_head * load_i64(op + CHUNKS) + chunk) * rows + row) * (load_i64(op + HEADS) // kv_heads)
    return load_i64(op + PARTIALS) + index * (RESULT_HEADER + load_i64(op + HEAD_SIZE)) * 4


@kernel
def attend_units(op: int, step: int, span: int, first: int, last: int, scratch: int) -> None:
    """Units first..last-1 of a span, each a chunk of a key/value head, left for `combine`."""
    kv_heads = load_i64(op + KV_HEADS)
    group = load_i64(op + HEADS) // kv_heads
    row, count = load_i32(load_i64(step + SPANS) + span * 8), load_i32(load_i64(step + SPANS) + span * 8 + 4)
    queries, size = scratch, max(SPAN_QUERIES, group)
    scores = queries + size * QUERY_STRIDE * PAIR_BYTES
    more = scores + size * CHUNK * 4
    begin, end = chunks_of(op, step, row, count)
    for unit in range(first, last):
        kv_head, chunk = unit // (end - begin), begin + unit % (end - begin)
        if unit == first or chunk == begin:
            gather_queries(op, row, count, kv_head, group, queries)
        results = partial_at(op, step, kv_head, chunk, row)
        next_head = (unit + 1) // (end - begin)
        next_chunk = begin + (unit + 1) % (end - begin) if unit + 1 < last else end
        attend_chunk(op, step, chunk, row, count, kv_head, queries, scores, results, more, next_chunk, next_head)


@kernel
def units_of(op: int, step: int, span: int) -> int:
    """In how many units a span is split."""
    spans = load_i64(step + SPANS)
    begin, end = chunks_of(op, step, load_i32(spans + span * 8), load_i32(spans + span * 8 + 4))
    return load_i64(op + KV_HEADS) * (end - begin)


@kernel
def attend_split(op: int, step: int, thread: int, threads: int, scratch: int) -> None:
    """A thread's share of the units of all spans: neighbours, so that what comes next is known."""
    total = 0
    for span in range(load_i64(step + SPAN_COUNT)):
        total += units_of(op, step, span)
    first, last = first_of(total, thread, threads), first_of(total, thread + 1, threads)
    for span in range(load_i64(step + SPAN_COUNT)):
        units = units_of(op, step, span)
        attend_units(op, step, span, max(first, 0), min(last, units), scratch)
        first -= units
        last -= units


@kernel
def attend(op: int, step: int, thread: int, threads: int) -> None:
    """Of few rows a share of the chunks, to keep every thread busy; of many rows whole units in turn."""
    scratch = load_i64(op + SCRATCH) + thread * load_i64(op + SCRATCH_STRIDE)
    if load_i64(step + SPLIT):
        attend_split(op, step, thread, threads, scratch)
        return
    kv_heads = load_i64(op + KV_HEADS)
    for unit in range(thread, load_i64(step + SPAN_COUNT) * kv_heads, threads):
        attend_unit(op, step, unit // kv_heads, unit % kv_heads, scratch)


@kernel
def combine(op: int, step: int, thread: int, threads: int) -> None:
    """Fold the chunks that `attend` left, where it split. A thread takes neighbouring rows: they share cache lines."""
    if not load_i64(step + SPLIT):
        return
    rows, heads, head_size = load_i64(step + ROWS), load_i64(op + HEADS), load_i64(op + HEAD_SIZE)
    group = heads // load_i64(op + KV_HEADS)
    for unit in range(first_of(rows * heads, thread, threads), first_of(rows * heads, thread + 1, threads)):
        head, row = unit // rows, unit % rows
        begin, end = chunks_of(op, step, row, 1)
        offset = head % group * (RESULT_HEADER + head_size) * 4
        result = partial_at(op, step, head // group, begin, row) + offset
        for chunk in range(begin + 1, end):
            fold(result, partial_at(op, step, head // group, chunk, row) + offset, head_size)
        quantize_output(op, step, result, row, head)
