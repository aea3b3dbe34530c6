"""Maps a packed file: the model's weights, used as they lie. `packed_format` draws the file."""

import contextlib
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import PackedFileError
from edgellm.kernels.layouts import Layout
from edgellm.packed_format import expected_vectors, expected_weights
from edgellm.packed_header import REMEDY, PackedHeader, read_header

__all__ = ["PackedModel", "Weight", "expected_vectors", "expected_weights", "open_packed"]

_NUMPY: dict[str, np.dtype[Any]] = {"U8": np.dtype(np.uint8), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}


@dataclass(frozen=True)
class Weight:
    """A quantized matrix [N rows, C columns], mapped read-only; `layouts.dequantize` says what it stands for."""

    layout: Layout
    rows: int  # N
    columns: int  # C
    codes: NDArray[np.uint8]  # [panels][blocks][bytes], Layout.codes_shape
    scales: NDArray[np.float16]  # [panels][C/G][32]
    mins: NDArray[np.float16] | None  # likewise


class PackedModel:
    """A mapped packed file; all arrays are views of the mapping and read-only."""

    def __init__(self, header: PackedHeader, mapping: mmap.mmap) -> None:
        self.header = header
        self.path = header.path
        self.nbytes = header.nbytes  # bytes mapped, the whole file
        self.config = header.config
        self.provenance = header.provenance
        self.report = header.report
        self.chat_template = header.chat_template
        self._mapping: mmap.mmap | None = mapping
        self.vocabulary = self._view("tokenizer").tobytes().rstrip(b" ")
        if not self.vocabulary:
            raise PackedFileError(f"{self.path}: the tokenizer is empty; {REMEDY}")
        self.weights = {name: self._weight(name, shape) for name, shape in expected_weights(self.config).items()}
        names = [name for name, tensor in header.table.items() if tensor.dtype == "F32"]
        self.vectors: dict[str, NDArray[np.float32]] = {name: self._view(name) for name in names}

    def close(self) -> None:
        """Let go of the mapping; it goes for good when the last array taken from it goes."""
        self.weights = {}
        self.vectors = {}
        if self._mapping is not None:
            with contextlib.suppress(BufferError):  # somebody holds an array: unmapping under it would crash
                self._mapping.close()
            self._mapping = None

    def _weight(self, name: str, shape: tuple[int, int]) -> Weight:
        layout = self.header.layouts[name]
        mins = self._view(f"{name}.mins") if layout.asymmetric else None
        return Weight(layout, *shape, self._view(f"{name}.codes"), self._view(f"{name}.scales"), mins)

    def _view(self, name: str) -> NDArray[Any]:
        assert self._mapping is not None
        tensor = self.header.table[name]
        begin, count = self.header.data_start + tensor.begin, math.prod(tensor.shape)
        array: NDArray[Any] = np.frombuffer(self._mapping, _NUMPY[tensor.dtype], count, begin)
        if tensor.dtype != "U8" and not _all_finite(array):
            raise PackedFileError(f"{self.path}: tensor {name} holds a number that is not finite; {REMEDY}")
        return array.reshape(tensor.shape)


def open_packed(path: str | Path) -> PackedModel:
    """Map a packed file. Nothing in it is believed before it is checked against the file; PackedFileError."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            header = read_header(path, file)
            mapping = mmap.mmap(file.fileno(), header.nbytes, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: the file shrank since its length was taken
        raise PackedFileError(f"{path} cannot be read ({error}); check the path") from error
    return PackedModel(header, mapping)


def _all_finite(array: NDArray[Any]) -> bool:
    """By the exponent bits, which is several times faster than np.isfinite on float16."""
    if array.itemsize == 2:
        return bool((array.view(np.uint16) & np.uint16(0x7FFF)).max() < 0x7C00)
    return bool((array.view(np.uint32) & np.uint32(0x7FFFFFFF)).max() < 0x7F800000)
