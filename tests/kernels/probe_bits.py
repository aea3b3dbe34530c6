"""Compiles the probes of an instruction set and prints a digest of what each computes: `python -m ... ISA`.

A process of its own, since a process compiles for one target.
"""

import hashlib
import sys

import numpy as np
from numba.core.compiler_lock import global_compiler_lock

from edgellm.kernels.compile import compile_probes, install
from edgellm.kernels.jit import Library
from edgellm.kernels.ops import CHUNK, KV_BLOCK, QUERY_STRIDE
from edgellm.kernels.quants.quant import Quant
from edgellm.kernels.targets import Tile, target_for
from edgellm.kernels.tune import (
    HEAD_SIZE,
    QUANTS,
    QUERIES,
    QUERY_BYTES,
    ROWS,
    attend_name,
    bf16_ways,
    product_name,
    tiles,
)

BLOCKS = 5


def product(probes: Library, quant: Quant, shape: Tile) -> bytes:
    """The bits of a random panel times ROWS random rows, whatever the height of the tiles that they lie in."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, BLOCKS * 512).astype(np.uint8)
    scales = rng.standard_normal((2, BLOCKS * 32)).astype(np.float16)  # and mins
    x = rng.integers(-127, 128, (ROWS, BLOCKS, 32)).astype(np.int8)
    scale, sums = rng.random((ROWS, BLOCKS)).astype(np.float32), x.sum(-1, dtype=np.int32)
    none = np.zeros_like(sums)
    floats = [values.astype(np.float32).view(np.int32) for values in (scale, scale * sums)]
    meta = np.stack([*floats, -8 * sums, -128 * sums, none, none])
    rows = x.reshape(-1, shape.tokens, BLOCKS, 32).transpose(0, 2, 1, 3)
    meta = meta.reshape(6, -1, shape.tokens, BLOCKS).transpose(1, 3, 0, 2)
    memory = joined(rows, meta, np.zeros((ROWS, 32), np.float32))
    weights = joined(codes, scales)
    probes.entry(product_name(quant, shape))(weights.ctypes.data, memory.ctypes.data, BLOCKS, 1)
    result = memory[-ROWS * 128 :].view(np.float32)
    assert np.isfinite(result).all() and result.all()
    return result.tobytes()


def joined(*parts: np.ndarray) -> np.ndarray:
    """Arrays one behind the other, as bytes."""
    return np.concatenate([np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts])


def attend(probes: Library, fast_bf16: bool) -> bytes:
    """The bits of scores and weighted values, of random bf16."""
    rng = np.random.default_rng(0)

    def bf16(count: int) -> np.ndarray:
        return (rng.standard_normal(count).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)

    queries, weights, block = bf16(QUERIES * HEAD_SIZE), bf16(QUERIES * KV_BLOCK), bf16(KV_BLOCK * HEAD_SIZE)
    pair_bytes = 4 if fast_bf16 else 8
    memory = np.zeros(QUERY_BYTES + QUERIES * CHUNK * 4, np.uint8)
    for values, start, stride in ((queries, 0, QUERY_STRIDE * pair_bytes), (weights, QUERY_BYTES, CHUNK * 4)):
        for i, row in enumerate(values.reshape(QUERIES, -1)):
            stored = row if fast_bf16 else row.astype(np.uint32) << 16
            memory[start + i * stride :][: stored.nbytes] = stored.view(np.uint8)
    out = np.zeros(QUERIES * (CHUNK + 32), np.float32)
    probes.entry(attend_name(fast_bf16))(memory.ctypes.data, block.ctypes.data, out.ctypes.data, 1)
    assert np.isfinite(out).all() and out[:32].all() and out[-32:].all()
    return out.tobytes()


def main() -> None:
    target = target_for(sys.argv[1])
    with global_compiler_lock:
        probes = Library(target, [compile_probes(install(target), target)])
    for quant in QUANTS:
        for shape in tiles(target):
            report(f"product {quant.name}", product(probes, quant, shape))
    for way in bf16_ways(target):
        report("attention", attend(probes, way))


def report(name: str, bits: bytes) -> None:
    sys.stdout.write(f"{name}: {hashlib.sha256(bits).hexdigest()}\n")


if __name__ == "__main__":
    main()
