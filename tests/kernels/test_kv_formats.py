"""Formats of keys and values: what kernels write into the cache is what their definition in NumPy writes and reads."""

import numpy as np
import pytest

from edgellm.backends.cpu.lower import float_bits
from edgellm.kernels import ops
from edgellm.kernels.jit import Library
from edgellm.kernels.kv_formats import kv_formats
from edgellm.kernels.kv_formats.kv_format import KVFormat
from edgellm.memory.buffers import address, aligned_zeros
from tests.kernels.rig import QuantizedMatrix
from tests.kernels.test_kernels import INT4, run_matmul, run_norm

HEADS, HEAD_SIZE, ROWS = 2, 64, 40
EVERY_FORMAT = pytest.mark.parametrize("kv_format", kv_formats().values(), ids=kv_formats())
TABLE = np.array([[2, 0]], np.int32)  # the blocks of positions 0..31 and 32..63


class Written:
    """Keys and values of positions 0..39, as numbers and as kernels wrote them."""

    def __init__(self, library: Library, kv_format: KVFormat, threads: int = 1) -> None:
        rng = np.random.default_rng(0)
        rig, x = run_norm(library, rng.standard_normal((ROWS, 64)).astype(np.float32), np.ones(64, np.float32), threads)
        rope = rng.standard_normal((ROWS, 2, HEAD_SIZE)).astype(np.float32)
        key, value = (QuantizedMatrix(INT4, HEADS * HEAD_SIZE, 64, seed=seed) for seed in (1, 2))
        self.keys, self.values = (aligned_zeros((ROWS, HEADS, HEAD_SIZE), np.float32) for _ in range(2))
        out = {"out": address(self.keys), "stride": HEADS * HEAD_SIZE, "head_size": HEAD_SIZE}
        # A query is made as a key is, and left as floats
        rig.product(x, key, f"query_{kv_format.name}", **out, rope=address(rope), scale=float_bits(1.0))
        run_matmul(rig, x, value, self.values.reshape(ROWS, -1))
        self.blocks = aligned_zeros((3, HEADS, kv_format.head_bytes(HEAD_SIZE)), np.uint8)
        state = rig.cache(kv_format.name, self.blocks, TABLE, HEAD_SIZE)
        rig.product(x, key, f"key_{kv_format.name}", rope=address(rope), state=state)
        rig.product(x, value, f"value_{kv_format.name}", state=state)


@EVERY_FORMAT
@pytest.mark.parametrize("threads", [1, 3])
def test_kernels_write_the_bytes_of_the_definition(library: Library, kv_format: KVFormat, threads: int) -> None:
    written = Written(library, kv_format, threads)
    expected = np.zeros_like(written.blocks)
    for row, head in np.ndindex(ROWS, HEADS):
        block = expected[TABLE[0, row // ops.KV_BLOCK], head]
        kv_format.write(block, row % ops.KV_BLOCK, written.keys[row, head], written.values[row, head])
    assert np.array_equal(written.blocks, expected)
    assert expected[[0, 2]].any(axis=(1, 2)).all() and not expected[1].any()


@EVERY_FORMAT
def test_what_is_read_is_what_was_written_to_8_bits(library: Library, kv_format: KVFormat) -> None:
    """A step is a 127th of the largest of its entries, or finer; half of it may be lost, and scales have 8 bits."""
    written = Written(library, kv_format)
    for head in range(HEADS):
        keys, values = kv_format.read(written.blocks[TABLE[0, 0], head], HEAD_SIZE)
        for found, all_exact in ((keys, written.keys), (values, written.values)):
            exact = all_exact[: ops.KV_BLOCK, head]
            limit = np.abs(exact).max(-1, keepdims=True) / 127 / 2 * (1 + 2**-8)
            assert (np.abs(found - exact) <= limit).all()


@EVERY_FORMAT
def test_what_is_read_and_written_again_has_the_same_bytes(kv_format: KVFormat) -> None:
    rng = np.random.default_rng(0)
    block, again = np.zeros((2, kv_format.head_bytes(HEAD_SIZE)), np.uint8)
    for slot in range(ops.KV_BLOCK):
        key, value = rng.standard_normal((2, HEAD_SIZE)).astype(np.float32) * 10.0 ** rng.integers(-3, 3, (2, 1))
        kv_format.write(block, slot, key, value)
    keys, values = kv_format.read(block, HEAD_SIZE)
    for slot in range(ops.KV_BLOCK):
        kv_format.write(again, slot, keys[slot], values[slot])
    assert np.array_equal(again, block) and block.any()


@EVERY_FORMAT
def test_prepared_queries_and_keys_have_the_products_they_had(kv_format: KVFormat) -> None:
    queries, keys = np.random.default_rng(0).standard_normal((2, 50, HEAD_SIZE))
    assert np.allclose(kv_format.prepare(queries) @ kv_format.prepare(keys).T, queries @ keys.T)
