"""Register tiles of attention: a few queries times keys, and their weights times values, in bf16 with float32 sums.

A call takes 1, 2, 3, 4, 8 or 12 queries. With 32 registers, up to 4 of them take 64 positions or entries at once, more
take 32: enough chains of additions to fill the pipes, and no more accumulators than registers. With 16 registers a tile
is 4 queries by 16, and calls are made of tiles. One score is summed over the head, one output over the positions, in
ascending order in every tile.

With each line of keys or values, the one `ahead` bytes after it is asked for, into the second cache. A page at a time,
64 requests in a row, gains half as much: they wait for one another.
"""

from collections.abc import Callable

from edgellm.kernels.ops import CHUNK, QUERY_STRIDE
from edgellm.kernels.simd.arithmetic import put, zero_tile
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import load_f32x16, load_i32x16, prefetch_l2, store_f32x16
from edgellm.kernels.simd.pairs import Pairs
from edgellm.kernels.simd.vectors import f32x16, selected

Tile = Callable[..., None]
HAS_32_REGISTERS = selected().has_32_registers
WEIGHTS_STRIDE = CHUNK * 4  # bytes: a weight takes no more than the score that it was


def make_scores(queries: int, blocks: int, bf16: Pairs) -> Tile:
    """Scores of a number of queries against one or two blocks of keys."""
    rows, vectors = (queries, 2 * blocks) if HAS_32_REGISTERS else (min(queries, 4), 1)
    zeros, no_halves = zero_tile(f32x16, vectors * rows), zero_tile(bf16.halves_type, vectors)
    halves, dot_bf16, pair_bytes = bf16.halves, bf16.dot, bf16.nbytes

    @kernel
    def tile(q: int, keys: int, more_keys: int, ahead: int, head_size: int, out: int) -> None:
        """q pairs [rows][QUERY_STRIDE], keys bf16 [E/2][32][2] -> out float32 [rows][CHUNK], 32 columns a block."""
        total = zeros()
        for _ in range(head_size >> 1):
            key = no_halves()
            for v in range(vectors):
                at = (keys if v < 2 else more_keys) + (v & 1) * 64
                prefetch_l2(at + ahead)
                key = put(key, v, halves(load_i32x16(at)))
            for i in range(rows):
                pair = q + i * QUERY_STRIDE * pair_bytes
                for v in range(vectors):
                    total = put(total, vectors * i + v, dot_bf16(total[vectors * i + v], key[v], pair))
            q += pair_bytes
            keys += 128
            more_keys += 128
        for i in range(rows):
            for v in range(vectors):
                store_f32x16(out + i * CHUNK * 4 + v * 64, total[vectors * i + v])

    @kernel
    def scores(q: int, keys: int, more_keys: int, ahead: int, head_size: int, out: int) -> None:
        for i in range(0, queries, rows):
            for v in range(0, 2, vectors):
                to = out + i * CHUNK * 4 + v * 64
                tile(q + i * QUERY_STRIDE * pair_bytes, keys + v * 64, more_keys, ahead, head_size, to)

    made: Tile = scores
    return made


def make_values(queries: int, wanted_vectors: int, bf16: Pairs) -> Tile:
    """Weighted sums of values, 16 entries of the head a vector, of a number of queries, over one block."""
    rows, vectors = (queries, wanted_vectors) if HAS_32_REGISTERS else (min(queries, 4), 1)
    zeros, no_halves = zero_tile(f32x16, vectors * rows), zero_tile(bf16.halves_type, vectors)
    halves, dot_bf16, pair_bytes = bf16.halves, bf16.dot, bf16.nbytes

    @kernel
    def tile(weights: int, values: int, ahead: int, head_size: int, pairs: int, out: int, stride: int) -> None:
        """weights pairs [rows][CHUNK], values bf16 [pairs][E][2] -> out float32 [rows][stride] += ..."""
        total = zeros()
        for i in range(rows):
            for v in range(vectors):
                total = put(total, vectors * i + v, load_f32x16(out + i * stride * 4 + v * 64))
        for _ in range(pairs):
            value = no_halves()
            for v in range(vectors):
                prefetch_l2(values + v * 64 + ahead)
                value = put(value, v, halves(load_i32x16(values + v * 64)))
            for i in range(rows):
                pair = weights + i * WEIGHTS_STRIDE
                for v in range(vectors):
                    total = put(total, vectors * i + v, dot_bf16(total[vectors * i + v], value[v], pair))
            values += head_size * 4
            weights += pair_bytes
        for i in range(rows):
            for v in range(vectors):
                store_f32x16(out + i * stride * 4 + v * 64, total[vectors * i + v])

    @kernel
    def values(weights: int, block: int, ahead: int, head_size: int, pairs: int, out: int, stride: int) -> None:
        for i in range(0, queries, rows):
            for v in range(0, wanted_vectors, vectors):
                to = out + i * stride * 4 + v * 64
                tile(weights + i * WEIGHTS_STRIDE, block + v * 64, ahead, head_size, pairs, to, stride)

    made: Tile = values
    return made
