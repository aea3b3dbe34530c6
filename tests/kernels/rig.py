"""Runs single kernels on NumPy arrays, the way a step program does."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels import ops
from edgellm.kernels.jit import Library
from edgellm.kernels.ops import Record
from edgellm.kernels.panels import BLOCK, PANEL, padded_rows
from edgellm.kernels.quants.quant import Quant
from edgellm.memory.buffers import address, aligned_zeros

SCRATCH = 1 << 20  # bytes a thread
Kept = TypeVar("Kept")


class Activation:
    """Rows quantized for a matrix product, with what earlier steps left in them; ops.py says how they lie."""

    def __init__(self, rows: int, columns: int) -> None:
        rows += ops.MAX_TILE_ROWS - 1  # the last tile may have room for more
        self.codes = aligned_zeros(rows * columns, np.int8)
        self.meta = aligned_zeros(rows * columns // BLOCK * ops.META_WORDS, np.float32)
        self.codes.fill(1)
        self.meta.fill(1)


class QuantizedMatrix:
    """A random matrix in a weight format, packed, and as the floats that it stands for."""

    def __init__(self, quant: Quant, rows: int, columns: int, seed: int) -> None:
        self.quant, self.rows, self.columns = quant, rows, columns
        values = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
        parts = quant.encode(values)
        self.dense = quant.decode(parts, rows)
        self.parts = {name: aligned_zeros(part.shape, part.dtype) for name, part in parts.items()}
        for name, part in parts.items():
            self.parts[name][...] = part


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

    def keep(self, kept: Kept) -> Kept:
        self.kept.append(kept)
        return kept

    def run(self, name: str, record: Record, **words: int) -> None:
        """An operation with these operands."""
        operation = record.pack(kernel=self.library.addresses[name], barrier=0, **words)
        step = ops.STEP.pack(**self.words)
        for thread in range(self.threads):
            self.library.entry(name)(address(operation), address(step), thread, self.threads)

    def record(self, record: Record, **words: int) -> int:
        """The address of a record that operations point to."""
        return address(self.keep(record.pack(**words)))

    def weight(self, matrix: QuantizedMatrix) -> int:
        """The address of a matrix as kernels take it."""
        parts = {name: address(part) for name, part in self.keep(matrix).parts.items()}
        kernels = {which: self.library.addresses[f"{which}_{matrix.quant.kernel}"] for which in ops.WEIGHT_HEAD}
        return self.record(matrix.quant.record, **kernels, **parts, **matrix.quant.numbers())

    def cache(self, kv_format: str, blocks: NDArray[np.uint8], table: NDArray[np.int32], head_size: int) -> int:
        """The address of the record of keys and values uint8 [blocks][K][head bytes] behind a table int32 [S][..]."""
        kept, listed = self.keep(blocks), self.keep(table)
        return self.record(
            ops.CACHE,
            blocks=address(kept),
            tables=address(listed),
            table_stride=table.shape[1],
            block_stride=blocks[0].nbytes,
            offset=0,
            head_stride=blocks.shape[2],
            head_size=head_size,
            score=self.library.addresses[f"score_{kv_format}"],
            values=self.library.addresses[f"values_{kv_format}"],
        )

    def product(
        self, x: Activation, weight: QuantizedMatrix, epilogue: str, *, second: QuantizedMatrix | None = None,
        **operands: int,
    ) -> None:  # fmt: skip
        """epilogue(x @ weight.T), by an epilogue's kernel: "store", or "key_bf16" for the format bf16."""
        part = ops.PART.pack(
            weight=self.weight(weight),
            second=0 if second is None else self.weight(second),
            panels=padded_rows(weight.rows) // PANEL,
            epilogue=self.library.addresses[epilogue],
            operands=self.record(ops.EPILOGUES[epilogue.partition("_")[0]], **operands),
        )
        self.run(
            "product",
            ops.PRODUCT,
            parts=address(part),
            part_count=1,
            x_codes=address(x.codes),
            x_meta=address(x.meta),
            own_codes=0,
            own_meta=0,
            columns=weight.columns,
            selected=0,
            scratch=address(self.scratch),
            scratch_stride=SCRATCH,
            outliers=address(self.outliers),
            outliers_stride=SCRATCH,
        )


def read_activation(activation: Activation, rows: int, columns: int, heights: tuple[int, ...]) -> NDArray[np.float32]:
    """Quantized rows as floats [rows][columns]; `heights` are those of the tiles, in order."""
    codes, scales = read_codes(activation, rows, columns, heights)
    return codes.astype(np.float32) * scales.repeat(BLOCK, axis=1)


def read_codes(
    activation: Activation, rows: int, columns: int, heights: tuple[int, ...]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Codes [rows][columns], outliers whole, and scales [rows][columns/32] of quantized rows."""
    blocks, start = columns // BLOCK, 0
    all_codes, scales = np.empty((rows, columns), np.int32), np.empty((rows, blocks), np.float32)
    for height in heights:
        tile, full = slice(start, min(start + height, rows)), slice(start, start + height)
        count = tile.stop - start
        codes = activation.codes.reshape(-1, columns)[full].reshape(blocks, height, BLOCK)[:, :count].astype(np.int32)
        meta = activation.meta.reshape(-1, blocks * ops.META_WORDS)[full].reshape(blocks, ops.META_WORDS, height)
        assert not meta[:, :2, count:].any(), "empty rows of the last tile have a scale and a sum of 0"
        meta = meta[:, :, :count].copy()
        high_parts = meta[:, 4].copy().view(np.int8).reshape(blocks, count, 4).sum(-1)
        np.put_along_axis(
            outliers := np.zeros_like(codes), meta[:, 5].copy().view(np.int32)[..., None], high_parts[..., None], -1
        )
        all_codes[tile] = (codes + 128 * outliers).transpose(1, 0, 2).reshape(count, columns)
        scales[tile] = meta[:, 0].T
        start += height
    assert start >= rows
    return all_codes, scales
