"""Register tiles of attention: a few queries times keys, and their weights times values, in bf16 with float32 sums.

A call takes 1, 2, 3, 4 or 8 queries. With 32 registers, up to 4 of them take 64 positions or entries at once, more take
32: enough chains of additions to fill the pipes, and no more accumulators than registers. With 16 registers a tile is 4
queries by 16, and calls are made of tiles. One score is summed over the head, one output over the positions, in
ascending order in every tile.
"""

from collections.abc import Callable

from edgellm.kernels.ops import CHUNK, QUERY_STRIDE
from edgellm.kernels.simd.arithmetic import put, zero_tile
from edgellm.kernels.simd.bfloat import HALVES, PAIR_BYTES, dot_bf16, halves
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import load_f32x16, load_i32x16, store_f32x16
from edgellm.kernels.simd.vectors import f32x16, selected

Tile = Callable[..., None]
HAS_32_REGISTERS = selected().has_32_registers
WEIGHTS_STRIDE = CHUNK * 4  # bytes: a weight takes no more than the score that it was
FEW = 4 if HAS_32_REGISTERS else 0  # queries that take two blocks of keys at once


def make_scores(queries: int, blocks: int) -> Tile:
    """Scores of a number of queries against one or two blocks of keys."""
    rows, vectors = (queries, 2 * blocks) if HAS_32_REGISTERS else (min(queries, 4), 1)
    zeros, no_halves = zero_tile(f32x16, vectors * rows), zero_tile(HALVES, vectors)

    @kernel
    def tile(q: int, keys: int, more_keys: int, head_size: int, out: int) -> None:
        """q pairs [rows][QUERY_STRIDE], keys bf16 [E/2][32][2] -> out float32 [rows][CHUNK], 32 columns a block."""
        total = zeros()
        for _ in range(head_size >> 1):
            key = no_halves()
            for v in range(vectors):
                key = put(key, v, halves(load_i32x16((keys if v < 2 else more_keys) + (v & 1) * 64)))
            for i in range(rows):
                pair = q + i * QUERY_STRIDE * PAIR_BYTES
                for v in range(vectors):
                    total = put(total, vectors * i + v, dot_bf16(total[vectors * i + v], key[v], pair))
            q += PAIR_BYTES
            keys += 128
            more_keys += 128
        for i in range(rows):
            for v in range(vectors):
                store_f32x16(out + i * CHUNK * 4 + v * 64, total[vectors * i + v])

    @kernel
    def scores(q: int, keys: int, more_keys: int, head_size: int, out: int) -> None:
        for i in range(0, queries, rows):
            for v in range(0, 2, vectors):
                to = out + i * CHUNK * 4 + v * 64
                tile(q + i * QUERY_STRIDE * PAIR_BYTES, keys + v * 64, more_keys, head_size, to)

    made: Tile = scores
    return made


def make_values(queries: int, wanted_vectors: int) -> Tile:
    """Weighted sums of values, 16 entries of the head a vector, of a number of queries, over one block."""
    rows, vectors = (queries, wanted_vectors) if HAS_32_REGISTERS else (min(queries, 4), 1)
    zeros, no_halves = zero_tile(f32x16, vectors * rows), zero_tile(HALVES, vectors)

    @kernel
    def tile(weights: int, values: int, head_size: int, pairs: int, out: int, stride: int) -> None:
        """weights pairs [rows][CHUNK], values bf16 [pairs][E][2] -> out float32 [rows][stride] += ..."""
        total = zeros()
        for i in range(rows):
            for v in range(vectors):
                total = put(total, vectors * i + v, load_f32x16(out + i * stride * 4 + v * 64))
        for _ in range(pairs):
            value = no_halves()
            for v in range(vectors):
                value = put(value, v, halves(load_i32x16(values + v * 64)))
            for i in range(rows):
                pair = weights + i * WEIGHTS_STRIDE
                for v in range(vectors):
                    total = put(total, vectors * i + v, dot_bf16(total[vectors * i + v], value[v], pair))
            values += head_size * 4
            weights += PAIR_BYTES
        for i in range(rows):
            for v in range(vectors):
                store_f32x16(out + i * stride * 4 + v * 64, total[vectors * i + v])

    @kernel
    def values(weights: int, block: int, head_size: int, pairs: int, out: int, stride: int) -> None:
        for i in range(0, queries, rows):
            for v in range(0, wanted_vectors, vectors):
                to = out + i * stride * 4 + v * 64
                tile(weights + i * WEIGHTS_STRIDE, block + v * 64, head_size, pairs, to, stride)

    made: Tile = values
    return made


scores_8, scores_4, scores_3, scores_2, scores_1 = (make_scores(n, 1) for n in (8, 4, 3, 2, 1))
scores_4x2, scores_3x2, scores_2x2, scores_1x2 = (make_scores(n, 2) for n in (4, 3, 2, 1))
values_8, values_4, values_3, values_2, values_1 = (make_values(n, 2) for n in (8, 4, 3, 2, 1))
values_4x2, values_3x2, values_2x2, values_1x2 = (make_values(n, 4) for n in (4, 3, 2, 1))


@kernel
def score_two_blocks(q: int, queries: int, keys: int, more_keys: int, head_size: int, out: int) -> None:
    """Of up to FEW queries."""
    if queries == 4:
        scores_4x2(q, keys, more_keys, head_size, out)
    elif queries == 3:
        scores_3x2(q, keys, more_keys, head_size, out)
    elif queries == 2:
        scores_2x2(q, keys, more_keys, head_size, out)
    else:
        scores_1x2(q, keys, more_keys, head_size, out)


@kernel
def score_block(q: int, queries: int, keys: int, head_size: int, out: int) -> None:
    i = 0
    while i < queries:
        left, at, to = queries - i, q + i * QUERY_STRIDE * PAIR_BYTES, out + i * CHUNK * 4
        if left >= 8:
            scores_8(at, keys, keys, head_size, to)
            i += 8
        elif left >= 4:
            scores_4(at, keys, keys, head_size, to)
            i += 4
        elif left == 3:
            scores_3(at, keys, keys, head_size, to)
            i += 3
        elif left == 2:
            scores_2(at, keys, keys, head_size, to)
            i += 2
        else:
            scores_1(at, keys, keys, head_size, to)
            i += 1


@kernel
def add_wide_values(weights: int, queries: int, rows: int, head_size: int, pairs: int, out: int, stride: int) -> None:
    """Of up to FEW queries, 64 entries."""
    if queries == 4:
        values_4x2(weights, rows, head_size, pairs, out, stride)
    elif queries == 3:
        values_3x2(weights, rows, head_size, pairs, out, stride)
    elif queries == 2:
        values_2x2(weights, rows, head_size, pairs, out, stride)
    else:
        values_1x2(weights, rows, head_size, pairs, out, stride)


@kernel
def add_narrow_values(weights: int, queries: int, rows: int, head_size: int, pairs: int, out: int, stride: int) -> None:
    """Of any queries, 32 entries."""
    i = 0
    while i < queries:
        left, at, to = queries - i, weights + i * WEIGHTS_STRIDE, out + i * stride * 4
        if left >= 8:
            values_8(at, rows, head_size, pairs, to, stride)
            i += 8
        elif left >= 4:
            values_4(at, rows, head_size, pairs, to, stride)
            i += 4
        elif left == 3:
            values_3(at, rows, head_size, pairs, to, stride)
            i += 3
        elif left == 2:
            values_2(at, rows, head_size, pairs, to, stride)
            i += 2
        else:
            values_1(at, rows, head_size, pairs, to, stride)
            i += 1


@kernel
def add_values(weights: int, queries: int, rows: int, head_size: int, pairs: int, out: int, stride: int) -> None:
    entry = 0
    while entry < head_size:
        if queries <= FEW and head_size - entry >= 64:
            add_wide_values(weights, queries, rows + entry * 4, head_size, pairs, out + entry * 4, stride)
            entry += 64
        else:
            add_narrow_values(weights, queries, rows + entry * 4, head_size, pairs, out + entry * 4, stride)
            entry += 32
