"""Attention against its NumPy twin, and against itself: split or whole, in any company, the bits are the same."""

import numpy as np
import pytest

from edgellm.kernels import ops, reference
from edgellm.kernels.jit import Library
from edgellm.memory.buffers import address, aligned_zeros
from tests.kernels.rig import Rig, read_activation, used_activation
from tests.kernels.test_kernels import assert_quantized, heights_of

HEAD_SIZE, LONGEST = 64, 640


def bits(values: np.ndarray) -> np.ndarray:
    """bf16 values, given as float32, as they are stored."""
    return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)


def pack_bf16(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A block of a head as it lies in the cache, bytes: keys and values float32 [KV_BLOCK][E]."""
    pairs = [keys.reshape(ops.KV_BLOCK, -1, 2).transpose(1, 0, 2), values.reshape(-1, 2, HEAD_SIZE).transpose(0, 2, 1)]
    return np.concatenate([bits(p).ravel().view(np.uint8) for p in pairs])


def pack_int8(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    (k, k_scales), (v, v_scales) = (reference.quantize_kv(x) for x in (keys, values))
    codes, scales = [k.T, v], np.stack([bits(s.T) for s in (k_scales, v_scales)])
    return np.concatenate([*(c.astype(np.int8).ravel().view(np.uint8) for c in codes), scales.ravel().view(np.uint8)])


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
        pack = pack_int8 if dtype == "int8" else pack_bf16
        size = len(pack(self.keys[: ops.KV_BLOCK, 0], self.values[: ops.KV_BLOCK, 0]))
        self.arena = aligned_zeros((blocks, kv_heads, size), np.uint8)
        for number, block in enumerate(self.table[0]):
            here = slice(number * ops.KV_BLOCK, (number + 1) * ops.KV_BLOCK)
            for head in range(kv_heads):
                self.arena[block, head] = pack(self.keys[here, head], self.values[here, head])

    def run(self, first: int, rows: int, *, split: bool, threads: int = 1) -> np.ndarray:
        """Rows at positions first.. -> what the output projection would read, float32 [rows][H*E]."""
        rig = Rig(self.library, np.arange(first, first + rows, dtype=np.int32), threads)
        width, chunks = self.heads * HEAD_SIZE, -(-LONGEST // ops.CHUNK)
        out = used_activation(rows, width)
        span = max(1, ops.SPAN_QUERIES // (self.heads // self.kv_heads))
        spans = np.array([(at, min(span, rows - at)) for at in range(0, rows, span)], np.int32)
        partials = aligned_zeros(rows * self.heads * chunks * (16 + HEAD_SIZE), np.float32)
        queries = np.ascontiguousarray(self.queries[first : first + rows])
        rig.words |= {
            "tables": address(self.table), "table_stride": self.table.shape[1], "kv": address(self.arena),
            "spans": address(spans), "span_count": len(spans), "split": int(split),
        }  # fmt: skip
        head_stride = self.arena.shape[2]
        words = {
            "q": address(queries), "out_codes": address(out.codes), "out_meta": address(out.meta), "heads": self.heads,
            "kv_heads": self.kv_heads, "head_size": HEAD_SIZE, "kv_offset": 0, "head_stride": head_stride,
            "block_stride": head_stride * self.kv_heads, "partials": address(partials), "chunks": chunks,
            "kv_int8": int(self.dtype == "int8"), "window": self.window,
            "scratch": address(rig.scratch), "scratch_stride": 1 << 20,
        }  # fmt: skip
        rig.run("attend", ops.ATTEND.pack(**rig.head("attend"), **words))
        rig.run("combine", ops.ATTEND.pack(**rig.head("combine"), **words))
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


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
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


KINDS = [("bf16", 0), ("bf16", 100), ("int8", 0), ("int8", 290)]


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


def test_positions_behind_a_row_are_not_seen(library: Library) -> None:
    attention = Attention(library, 4, 2)
    before = attention.run(300, 1, split=True)
    block, slot = attention.table[0, 300 // ops.KV_BLOCK], 300 % ops.KV_BLOCK
    pairs = attention.arena[block].view(np.uint16).reshape(2, 2, -1)  # [K][keys, values]
    keys, values = (
        pairs[:, at].reshape(2, *shape) for at, shape in enumerate([(-1, ops.KV_BLOCK, 2), (-1, HEAD_SIZE, 2)])
    )
    large = bits(np.full(1, 60000, np.float32))[0]
    keys[:, :, slot + 1 :] = large
    for behind in range(slot + 1, ops.KV_BLOCK):
        values[:, behind // 2, :, behind % 2] = large
    assert np.array_equal(attention.run(300, 1, split=True), before)
    values[:, slot // 2, :, slot % 2] = large
    assert not np.array_equal(attention.run(300, 1, split=True), before)


def test_positions_in_front_of_the_window_are_not_seen(library: Library) -> None:
    attention = Attention(library, 4, 2, window=40)
    before = attention.run(300, 1, split=True)

    def overwrite(position: int) -> None:
        block = attention.arena[attention.table[0, position // ops.KV_BLOCK]].view(np.uint16).reshape(2, 2, -1)
        block[:, 0].reshape(2, -1, ops.KV_BLOCK, 2)[:, :, position % ops.KV_BLOCK] = bits(np.full(1, 3, np.float32))[0]

    for position in range(261):
        overwrite(position)
    assert np.array_equal(attention.run(300, 1, split=True), before)
    overwrite(261)
    assert not np.array_equal(attention.run(300, 1, split=True), before)
