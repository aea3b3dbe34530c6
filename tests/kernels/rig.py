"""Runs single kernels on NumPy arrays, the way a step program does."""

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels import layouts, ops
from edgellm.kernels.jit import Library
from edgellm.kernels.layouts import Layout
from edgellm.memory.buffers import address, aligned_zeros
from edgellm.model.program import Activation, layout_number

SCRATCH = 1 << 20  # bytes a thread


class Rig:
    """One step of `positions.size` rows of one sequence; `run` lets `threads` threads do their share in turn."""

    def __init__(self, library: Library, positions: NDArray[np.int32], threads: int = 1) -> None:
        self.library, self.threads, self.rows = library, threads, len(positions)
        self.kept: list[object] = []
        self.scratch, self.outliers = (self.keep(aligned_zeros(threads * SCRATCH, np.uint8)) for _ in range(2))
        self.positions = self.keep(np.ascontiguousarray(positions, np.int32))
        self.words = dict.fromkeys(ops.STEP.names, 0)
        self.words |= {"rows": self.rows, "positions": address(self.positions)}
        self.words["sequences"] = address(self.keep(np.zeros(self.rows, np.int32)))

    def keep(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        self.kept.append(array)
        return array

    def run(self, name: str, record: NDArray[np.int64]) -> None:
        step = ops.STEP.pack(**self.words)
        for thread in range(self.threads):
            self.library.entry(name)(address(record), address(step), thread, self.threads)

    def head(self, name: str) -> dict[str, int]:
        return {"kernel": self.library.addresses[name], "barrier": 0}


class QuantizedMatrix:
    """A random matrix in a layout, packed, and as the floats that it stands for."""

    def __init__(self, layout: Layout, rows: int, columns: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.layout, self.rows, self.columns = layout, rows, columns
        codes = rng.integers(0, 1 << layout.bits, (rows, columns)).astype(np.uint8)
        groups = (rows, columns // layout.group)
        self.codes = layouts.pack_codes(layout, codes)
        self.scales = layouts.pack_scales((rng.random(groups) * 0.01 + 0.001).astype(np.float16))
        self.mins = layouts.pack_scales((-rng.random(groups)).astype(np.float16)) if layout.asymmetric else None
        self.dense = layouts.dequantize(layout, self.codes, self.scales, self.mins, rows)

    def words(self, prefix: str = "") -> dict[str, int]:
        values = (
            layout_number(self.layout),
            address(self.codes),
            address(self.scales),
            address(self.mins),
            self.layout.group,
        )
        return {
            prefix + name: value
            for name, value in zip(("layout", "codes", "scales", "mins", "group"), values, strict=True)
        }


def used_activation(rows: int, columns: int) -> Activation:
    """One that earlier steps left numbers in."""
    activation = Activation(rows, columns)
    activation.codes.fill(1)
    activation.meta.fill(1)
    return activation


def read_activation(activation: Activation, rows: int, columns: int, heights: tuple[int, ...]) -> NDArray[np.float32]:
    """Quantized rows as floats [rows][columns]; `heights` are those of the tiles, in order."""
    blocks, result, start = columns // 32, np.empty((rows, columns), np.float32), 0
    for height in heights:
        tile, full = slice(start, min(start + height, rows)), slice(start, start + height)
        count = tile.stop - start
        codes = activation.codes.reshape(-1, columns)[full].reshape(blocks, height, 32)[:, :count].astype(np.int32)
        meta = activation.meta.reshape(-1, blocks * ops.META_WORDS)[full].reshape(blocks, ops.META_WORDS, height)
        assert not meta[:, :2, count:].any(), "empty rows of the last tile have a scale and a sum of 0"
        meta = meta[:, :, :count].copy()
        high_parts = meta[:, 4].copy().view(np.int8).reshape(blocks, count, 4).sum(-1)
        np.put_along_axis(
            outliers := np.zeros_like(codes), meta[:, 5].copy().view(np.int32)[..., None], high_parts[..., None], -1
        )
        values = (codes + 128 * outliers).astype(np.float32) * meta[:, 0, :, None]
        result[tile] = values.transpose(1, 0, 2).reshape(count, columns)
        start += height
    assert start >= rows
    return result
