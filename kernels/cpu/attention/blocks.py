"""Attention to one block of keys in bf16, or two: the tiles of tiles.py for any number of queries.

`ahead` is how many bytes after each line that the first queries read lies one that is wanted later, `after` the same
for the other queries; 0 for none.
"""

from edgellm.kernels.cpu.attention.tiles import HAS_32_REGISTERS, WEIGHTS_STRIDE, make_scores, make_values
from edgellm.kernels.ops import CHUNK, QUERY_STRIDE
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.pairs import make_pairs
from edgellm.kernels.simd.vectors import selected

PAIRS = make_pairs(selected().fast_bf16)
PAIR_BYTES, store_pairs, load_pairs, broadcast_pair = PAIRS.nbytes, PAIRS.store, PAIRS.load, PAIRS.broadcast
FEW = 4 if HAS_32_REGISTERS else 0  # queries that take two blocks of keys at once

scores_12, scores_8, scores_4, scores_3, scores_2, scores_1 = (make_scores(n, 1, PAIRS) for n in (12, 8, 4, 3, 2, 1))
scores_4x2, scores_3x2, scores_2x2, scores_1x2 = (make_scores(n, 2, PAIRS) for n in (4, 3, 2, 1))
values_12, values_8, values_4, values_3, values_2, values_1 = (make_values(n, 2, PAIRS) for n in (12, 8, 4, 3, 2, 1))
values_4x2, values_3x2, values_2x2, values_1x2 = (make_values(n, 4, PAIRS) for n in (4, 3, 2, 1))


@kernel
def score_two_blocks(q: int, queries: int, keys: int, more_keys: int, ahead: int, head_size: int, out: int) -> None:
    """Of up to FEW queries."""
    if queries == 4:
        scores_4x2(q, keys, more_keys, ahead, head_size, out)
    elif queries == 3:
        scores_3x2(q, keys, more_keys, ahead, head_size, out)
    elif queries == 2:
        scores_2x2(q, keys, more_keys, ahead, head_size, out)
    else:
        scores_1x2(q, keys, more_keys, ahead, head_size, out)


@kernel
def score_block(q: int, queries: int, keys: int, ahead: int, after: int, head_size: int, out: int) -> None:
    i = 0
    while i < queries:
        left, at, to = queries - i, q + i * QUERY_STRIDE * PAIR_BYTES, out + i * CHUNK * 4
        if left >= 12:
            scores_12(at, keys, keys, after if i else ahead, head_size, to)
            i += 12
        elif left >= 8:
            scores_8(at, keys, keys, after if i else ahead, head_size, to)
            i += 8
        elif left >= 4:
            scores_4(at, keys, keys, after if i else ahead, head_size, to)
            i += 4
        elif left == 3:
            scores_3(at, keys, keys, after if i else ahead, head_size, to)
            i += 3
        elif left == 2:
            scores_2(at, keys, keys, after if i else ahead, head_size, to)
            i += 2
        else:
            scores_1(at, keys, keys, after if i else ahead, head_size, to)
            i += 1


@kernel
def add_wide_values(
    weights: int, queries: int, rows: int, ahead: int, head_size: int, pairs: int, out: int, stride: int
) -> None:
    """Of up to FEW queries, 64 entries."""
    if queries == 4:
        values_4x2(weights, rows, ahead, head_size, pairs, out, stride)
    elif queries == 3:
        values_3x2(weights, rows, ahead, head_size, pairs, out, stride)
    elif queries == 2:
        values_2x2(weights, rows, ahead, head_size, pairs, out, stride)
    else:
        values_1x2(weights, rows, ahead, head_size, pairs, out, stride)


@kernel
def add_narrow_values(
    weights: int, queries: int, rows: int, ahead: int, head_size: int, pairs: int, out: int, stride: int
) -> None:
    """Of any queries, 32 entries."""
    i = 0
    while i < queries:
        left, at, to = queries - i, weights + i * WEIGHTS_STRIDE, out + i * stride * 4
        if left >= 12:
            values_12(at, rows, 0 if i else ahead, head_size, pairs, to, stride)
            i += 12
        elif left >= 8:
            values_8(at, rows, 0 if i else ahead, head_size, pairs, to, stride)
            i += 8
        elif left >= 4:
            values_4(at, rows, 0 if i else ahead, head_size, pairs, to, stride)
            i += 4
        elif left == 3:
            values_3(at, rows, 0 if i else ahead, head_size, pairs, to, stride)
            i += 3
        elif left == 2:
            values_2(at, rows, 0 if i else ahead, head_size, pairs, to, stride)
            i += 2
        else:
            values_1(at, rows, 0 if i else ahead, head_size, pairs, to, stride)
            i += 1


@kernel
def add_values(
    weights: int, queries: int, rows: int, ahead: int, head_size: int, pairs: int, out: int, stride: int
) -> None:
    entry = 0
    while entry < head_size:
        if queries <= FEW and head_size - entry >= 64:
            add_wide_values(weights, queries, rows + entry * 4, ahead, head_size, pairs, out + entry * 4, stride)
            entry += 64
        else:
            add_narrow_values(weights, queries, rows + entry * 4, ahead, head_size, pairs, out + entry * 4, stride)
            entry += 32
