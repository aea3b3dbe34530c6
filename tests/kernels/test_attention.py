"""Attention against its NumPy twin, and against itself: split or whole, in any company, the bits are the same."""

import numpy as np
import pytest

from edgellm.kernels import ops, reference
from edgellm.kernels.jit import Library
from edgellm.kernels.kv_formats import kv_formats
from edgellm.memory.buffers import address, aligned_zeros
from tests.kernels.rig import SCRATCH, Activation, Rig, read_activation
from tests.kernels.test_kernels import assert_quantized, heights_of

HEAD_SIZE, LONGEST = 64, 640
EVERY_FORMAT = pytest.mark.parametrize("dtype", kv_formats())


class Attention:
    """A KV cache filled with random keys and values, whose blocks lie in a random order."""

    def __init__(self, library: Library, heads: int, kv_heads: int, *, dtype: str = "bf16", window: int = 0) -> None:
        rng = np.random.default_rng(heads)
        self.library, self.heads, self.kv_heads, self.dtype, self.window = library, heads, kv_heads, dtype, window
        self.keys, self.values = (
            reference.bf16(rng.standard_normal((LONGEST, kv_heads, HEAD_SIZE)).astype(np.float32)) for _ in range(2)
        )
        self.queries = (rng.standard_normal((LONGEST, heads, HEAD_SIZE)) * 0.3).astype(np.float32)
        blocks = LONGEST // ops.KV_BLOCK
        self.table = rng.permutation(blocks).astype(np.int32)[None]
        self.arena = aligned_zeros((blocks, kv_heads, kv_formats()[dtype].head_bytes(HEAD_SIZE)), np.uint8)
        for position in range(LONGEST):
            self.write(position)

    def write(self, position: int, *, key: float | None = None, value: float | None = None) -> None:
        """What the cache holds of a position, or something else in all entries."""
        block, slot = self.table[0, position // ops.KV_BLOCK], position % ops.KV_BLOCK
        for head in range(self.kv_heads):
            keys, values = (
                kept[position, head] if entry is None else np.full(HEAD_SIZE, entry, np.float32)
                for kept, entry in ((self.keys, key), (self.values, value))
            )
            kv_formats()[self.dtype].write(self.arena[block, head], slot, keys, values)

    def run(self, first: int, rows: int, *, split: bool, threads: int = 1) -> np.ndarray:
        """Rows at positions first.. -> what the output projection would read, float32 [rows][H*E]."""
        rig = Rig(self.library, np.arange(first, first + rows, dtype=np.int32), threads)
        width, chunks = self.heads * HEAD_SIZE, -(-LONGEST // ops.CHUNK)
        out = Activation(rows, width)
        span = max(1, ops.SPAN_QUERIES // (self.heads // self.kv_heads))
        spans = np.array([(at, min(span, rows - at)) for at in range(0, rows, span)], np.int32)
        partials = aligned_zeros(rows * self.heads * chunks * (16 + HEAD_SIZE), np.float32)
        queries = np.ascontiguousarray(self.queries[first : first + rows])
        rig.words |= {"spans": address(spans), "span_count": len(spans), "split": int(split)}
        words = {
            "q": address(queries), "out_codes": address(out.codes), "out_meta": address(out.meta), "heads": self.heads,
            "kv_heads": self.kv_heads, "head_size": HEAD_SIZE,
            "state": rig.cache(self.dtype, self.arena, self.table, HEAD_SIZE), "window": self.window,
            "partials": address(partials), "chunks": chunks,
            "scratch": address(rig.scratch), "scratch_stride": SCRATCH,
        }  # fmt: skip
        rig.run("attend", ops.ATTEND, **words)
        rig.run("combine", ops.ATTEND, **words)
        return read_activation(out, rows, width, heights_of(rows, self.library))

    def slack(self, first: int, rows: int) -> np.ndarray:
        """What the heaviest weight of a row may change if its rounding to bf16 falls the other way, [rows][H*E]."""
        scores = np.einsum(
            "rhe,she->rhs",
            self.queries[first : first + rows],
            self.keys[: first + rows].repeat(self.heads // self.kv_heads, 1),
        )
        weights = np.exp2(scores - scores.max(-1, keepdims=True))
        heaviest = weights.max(-1) / weights.sum(-1) * 2**-8 * np.abs(self.values).max()
        return heaviest.repeat(HEAD_SIZE, axis=1)

    def exact(self, first: int, rows: int) -> np.ndarray:
        seen = first + rows
        q = self.queries[first:seen]
        keys, values = self.keys[:seen], self.values[:seen]
        found = reference.attend(q, keys, values, first, dtype=self.dtype, window=self.window or None)
        return found.reshape(rows, -1)


@EVERY_FORMAT
@pytest.mark.parametrize("window", [0, 1, 40, 300])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 2), (9, 3), (8, 1), (7, 1)])
@pytest.mark.parametrize(("first", "rows"), [(0, 1), (0, 40), (31, 3), (250, 30), (600, 1), (500, 17)])
def test_attention_equals_softmax_over_the_positions_seen(
    library: Library, heads: int, kv_heads: int, first: int, rows: int, dtype: str, window: int
) -> None:
    attention = Attention(library, heads, kv_heads, dtype=dtype, window=window)
    found = attention.run(first, rows, split=rows <= ops.SPLIT_ROWS)
    alone = dtype == "int8" and (window == 1 or first + rows == 1)  # a value alone, which is in INT8 already
    slack = attention.slack(first, rows)
    assert_quantized(found, attention.exact(first, rows), slack, may_be_exact=alone)


KINDS = [(name, window) for name in kv_formats() for window in (0, 100, 290)]


@pytest.mark.parametrize(("dtype", "window"), KINDS)
def test_split_over_threads_or_whole_the_bits_are_the_same(library: Library, dtype: str, window: int) -> None:
    attention = Attention(library, 9, 3, dtype=dtype, window=window)
    for first, rows in ((0, 1), (250, 12), (600, 5)):
        whole = attention.run(first, rows, split=False)
        for threads in (1, 2, 3, 8):
            assert np.array_equal(attention.run(first, rows, split=True, threads=threads), whole)
            assert np.array_equal(attention.run(first, rows, split=False, threads=threads), whole)


@pytest.mark.parametrize(("dtype", "window"), KINDS)
def test_a_row_alone_has_the_bits_it_has_among_others(library: Library, dtype: str, window: int) -> None:
    attention = Attention(library, 4, 2, dtype=dtype, window=window)
    together = attention.run(240, 40, split=False)
    for row in (0, 7, 15, 16, 17, 39):
        assert np.array_equal(attention.run(240 + row, 1, split=True)[0], together[row]), row


@EVERY_FORMAT
def test_positions_behind_a_row_are_not_seen(library: Library, dtype: str) -> None:
    attention = Attention(library, 4, 2, dtype=dtype)
    before = attention.run(300, 1, split=True)
    for position in range(301, 320):
        attention.write(position, key=60000, value=60000)
    assert np.array_equal(attention.run(300, 1, split=True), before)
    attention.write(300, value=60000)
    assert not np.array_equal(attention.run(300, 1, split=True), before)


@EVERY_FORMAT
def test_positions_in_front_of_the_window_are_not_seen(library: Library, dtype: str) -> None:
    attention = Attention(library, 4, 2, dtype=dtype, window=40)
    before = attention.run(300, 1, split=True)
    for position in range(261):
        attention.write(position, key=3)
    assert np.array_equal(attention.run(300, 1, split=True), before)
    attention.write(261, key=3)
    assert not np.array_equal(attention.run(300, 1, split=True), before)
