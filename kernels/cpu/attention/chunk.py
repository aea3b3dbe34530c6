"""Attention of a few queries to one chunk of positions: scores, what becomes of them, and the values they weigh.

Scores and weighted values are the KV format's kernels, which the cache's record names (ops.py, CACHE).

Memory is asked for what comes next: the processor's own prefetching stops where a page ends, and a block's keys are
one page. While keys are scored, the values after them are on their way, and while values are added, the keys of the
next unit; where queries take several passes over the keys of a block, the next block's keys as well.
"""

from edgellm.kernels.cpu.attention.blocks import FEW
from edgellm.kernels.cpu.attention.softmax import WEIGHT_BYTES, find_largest, softmax_weights
from edgellm.kernels.cpu.rows import CACHE_HEAD_STRIDE, POSITIONS, SEQUENCES, kv_address
from edgellm.kernels.ops import ATTEND, CACHE, CHUNK, KV_BLOCK, RESULT_HEADER
from edgellm.kernels.simd.arithmetic import zero_f32
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import call_7, call_8, load_i32, load_i64, store_f32x16

HEADS, KV_HEADS, HEAD_SIZE, STATE, WINDOW = (
    ATTEND.heads, ATTEND.kv_heads, ATTEND.head_size, ATTEND.state, ATTEND.window,
)  # fmt: skip
SCORE, VALUES = CACHE.score, CACHE.values


@kernel
def attend_chunk(
    op: int, step: int, chunk: int, row: int, count: int, kv_head: int, queries: int, scores: int, results: int,
    scratch: int, next_chunk: int, next_head: int,
) -> None:  # fmt: skip
    """(m, l, o) of a chunk for every query of a unit; l = 0 where a query sees nothing of it.

    queries, pairs [.][QUERY_STRIDE], scores float32 [.][CHUNK], results float32 [.][RESULT_HEADER + E]; the thread's
    next unit is that of `next_chunk` and `next_head`.
    """
    head_size, group = load_i64(op + HEAD_SIZE), load_i64(op + HEADS) // load_i64(op + KV_HEADS)
    window, cache = load_i64(op + WINDOW), load_i64(op + STATE)
    score, values = load_i64(cache + SCORE), load_i64(cache + VALUES)
    result_stride, head_stride = RESULT_HEADER + head_size, load_i64(cache + CACHE_HEAD_STRIDE)
    sequence = load_i32(load_i64(step + SEQUENCES) + row * 4)
    position = load_i32(load_i64(step + POSITIONS) + row * 4)
    begin = chunk * CHUNK
    width = min(CHUNK, position + count - begin)
    # No row sees blocks before the first row's window
    start = max(0, position - window + 1 - begin) & -KV_BLOCK if window else 0
    at = start
    while at < width:
        keys = kv_address(cache, sequence, begin + at) + kv_head * head_stride
        next_keys = 0
        if at + KV_BLOCK < width:
            next_keys = kv_address(cache, sequence, begin + at + KV_BLOCK) + kv_head * head_stride
        call_7(score, cache, queries, count * group, keys, next_keys, scratch, scores + at * 4)
        at += 2 * KV_BLOCK if next_keys and count * group <= FEW else KV_BLOCK
    padded = (width + KV_BLOCK - 1) // KV_BLOCK * KV_BLOCK
    for i in range(count * group):
        result = results + i * result_stride * 4
        visible = position + i // group + 1 - begin
        hidden = max(visible - window, 0) if window else 0
        find_largest(scores + (i * CHUNK + start) * 4, hidden - start, visible - start, padded - start, result)
    for i in range(count * group):
        result = results + i * result_stride * 4
        visible = position + i // group + 1 - begin
        hidden = max(visible - window, 0) if window else 0
        softmax_weights(scores + (i * CHUNK + start) * 4, hidden - start, visible - start, padded - start, result)
        for entry in range(0, head_size, 16):
            store_f32x16(result + (RESULT_HEADER + entry) * 4, zero_f32())
    for at in range(start, width, KV_BLOCK):
        block = kv_address(cache, sequence, begin + at) + kv_head * head_stride
        pairs = (min(KV_BLOCK, width - at) + 1) >> 1
        weights, out = scores + start * 4 + (at - start) * WEIGHT_BYTES, results + RESULT_HEADER * 4
        following = block
        if next_chunk * CHUNK + at < position + count:
            following = kv_address(cache, sequence, next_chunk * CHUNK + at) + next_head * head_stride
        call_8(values, cache, weights, count * group, block, following - block, pairs, scratch, out)
