"""INT8 keys, and their queries, go through a Hadamard transform: the same products, and no entry that spoils others."""

import numpy as np

from edgellm.backends.cpu.lower import float_bits
from edgellm.kernels import ops, reference
from edgellm.kernels.jit import Library
from edgellm.kernels.kv_formats import kv_formats
from edgellm.memory.buffers import address, aligned_zeros
from tests.kernels.rig import QuantizedMatrix
from tests.kernels.test_kernels import INT4, ULP, run_norm

HEAD_SIZE, HEADS, ROWS, SCALE = 64, 2, 7, 0.3


class Projection:
    """A matrix product whose outputs, 2 heads, are queries or keys at positions 0..6."""

    def __init__(self, library: Library) -> None:
        rng = np.random.default_rng(0)
        self.weight = QuantizedMatrix(INT4, HEADS * HEAD_SIZE, 64, seed=1)
        x = rng.standard_normal((ROWS, 64)).astype(np.float32)
        self.rig, self.activation = run_norm(library, x, np.ones(64, np.float32))
        self.rope = rng.standard_normal((ROWS, 2, HEAD_SIZE)).astype(np.float32)

    def queries(self, kv_format: str) -> np.ndarray:
        """float32 [R][H][E]"""
        out = aligned_zeros((ROWS, HEADS * HEAD_SIZE), np.float32)
        operands = {"out": address(out), "stride": out.shape[1], "rope": address(self.rope)}
        operands |= {"head_size": HEAD_SIZE, "scale": float_bits(SCALE)}
        self.rig.product(self.activation, self.weight, f"query_{kv_format}", **operands)
        return out.reshape(ROWS, HEADS, HEAD_SIZE)

    def int8_keys(self) -> tuple[np.ndarray, np.ndarray]:
        """codes [R][H][E] and scales [R][H][E/32], as they lie in the first block"""
        (cache,) = blocks = aligned_zeros((1, HEADS, kv_formats()["int8"].head_bytes(HEAD_SIZE)), np.uint8)
        state = self.rig.cache("int8", blocks, np.zeros((1, 1), np.int32), HEAD_SIZE)
        self.rig.product(self.activation, self.weight, "key_int8", rope=address(self.rope), state=state)
        codes = cache[:, : HEAD_SIZE * ops.KV_BLOCK].view(np.int8).reshape(HEADS, HEAD_SIZE, ops.KV_BLOCK)
        bits = cache[:, 2 * HEAD_SIZE * ops.KV_BLOCK :].copy().view(np.uint16).reshape(HEADS, 2, -1, ops.KV_BLOCK)[:, 0]
        scales = (bits.astype(np.uint32) << 16).view(np.float32)
        return (part[..., :ROWS].transpose(2, 0, 1) for part in (codes, scales))  # type: ignore[return-value]


def test_queries_are_transformed_where_keys_are_int8(library: Library) -> None:
    projection = Projection(library)
    plain, found = (projection.queries(kv_format) for kv_format in ("bf16", "int8"))
    limit = 6 * ULP * np.abs(plain).max()
    assert np.abs(found - reference.hadamard(plain)).max() < limit < np.abs(found - plain).max()


def test_keys_lie_transformed_in_codes_and_scales(library: Library) -> None:
    projection = Projection(library)
    exact = reference.hadamard(projection.queries("bf16") / np.float32(SCALE))
    codes, scales = projection.int8_keys()
    steps = scales.repeat(32, axis=-1)
    assert np.abs(codes).max(-1).min() > 120
    assert (np.abs(codes * steps - exact) <= 0.501 * steps).all()


def test_the_transform_keeps_products_and_spreads_one_large_entry() -> None:
    rng = np.random.default_rng(0)
    queries, keys = (rng.standard_normal((200, 64)) for _ in range(2))
    keys[:, 40] = 30.0
    exact = queries @ keys.T
    transformed = [reference.hadamard(x) for x in (queries, keys)]
    assert np.allclose(transformed[0] @ transformed[1].T, exact)
    errors = [
        np.abs(q @ reference.dequantize(*reference.quantize_kv(k)).T - exact).mean()
        for q, k in ((queries, keys), transformed)
    ]
    assert errors[1] < errors[0] / 2, errors
