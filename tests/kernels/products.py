"""A matrix in any weight format, and its two kernels run on NumPy arrays."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels import ops
from edgellm.kernels.jit import Library
from edgellm.kernels.panels import BLOCK, PANEL, padded_rows
from edgellm.kernels.quants.quant import Parts, Quant
from edgellm.memory.buffers import address, aligned_zeros

Floats = NDArray[np.float32]
SCRATCH = 1 << 20  # bytes of results, and of outliers


class Matrix:
    """Parts at aligned addresses, and the record that kernels take."""

    def __init__(self, library: Library, quant: Quant, parts: Parts, rows: int, columns: int) -> None:
        self.library, self.rows, self.columns = library, rows, columns
        self.parts = {name: _aligned(part) for name, part in parts.items()}
        self.dense = quant.decode(parts, rows)
        kernels = {which: library.addresses[f"{which}_{quant.kernel}"] for which in ops.WEIGHT_HEAD}
        addresses = {name: address(part) for name, part in self.parts.items()}
        self.record = quant.record.pack(**kernels, **addresses, **quant.numbers())

    def times(self, x: Floats) -> Floats:
        """Rows [R][C], quantized by the kernel -> [R][N, padded]."""
        rows, blocks = len(x), self.columns // BLOCK
        out = aligned_zeros((rows, padded_rows(self.rows)), np.float32)
        room = rows + ops.MAX_TILE_ROWS
        codes = aligned_zeros(room * self.columns, np.int8)
        meta = aligned_zeros(room * blocks * ops.META_BYTES, np.uint8)
        scratch, outliers = aligned_zeros(SCRATCH, np.uint8), aligned_zeros(SCRATCH, np.uint8)
        x = _aligned(x)
        store = ops.EPILOGUES["store"].pack(out=address(out), stride=out.shape[1])
        part = ops.PART.pack(
            weight=address(self.record),
            second=0,
            panels=out.shape[1] // PANEL,
            epilogue=self.library.addresses["store"],
            operands=address(store),
        )
        self._run("quantize", rows, ops.QUANTIZE, x=x, out_codes=codes, out_meta=meta, width=self.columns)
        named = {"x_codes": codes, "x_meta": meta, "scratch": scratch, "outliers": outliers}
        self._run("product", rows, ops.PRODUCT, parts=part, part_count=1, columns=self.columns, **named)
        return out

    def embedded(self, tokens: list[int]) -> Floats:
        """Rows of the matrix [tokens][C], as the embedding takes them."""
        out = aligned_zeros((len(tokens), self.columns), np.float32)
        ids = np.array(tokens, np.int32)
        self._run("embed", len(tokens), ops.EMBED, ids, weight=self.record, out=out, width=self.columns)
        return out

    def _run(self, name: str, rows: int, record: ops.Record, tokens: Any = None, **words: Any) -> None:
        """An operation on one thread; words that are not named are 0, arrays stand for their addresses."""
        step = ops.STEP.pack(**dict.fromkeys(ops.STEP.names, 0) | {"rows": rows, "tokens": address(tokens)})
        values = {key: address(value) if isinstance(value, np.ndarray) else value for key, value in words.items()}
        operation = record.pack(**dict.fromkeys(record.names, 0) | values)
        self.library.entry(name)(address(operation), address(step), 0, 1)


def _aligned(array: NDArray[Any]) -> NDArray[Any]:
    copy = aligned_zeros(array.shape, array.dtype.type)
    copy[...] = array
    return copy
