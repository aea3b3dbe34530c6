"""Maps a packed file: the model's weights, used as they lie. `format` draws the file."""

import contextlib
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import PackedFileError
from edgellm.kernels.quants.quant import Quant
from edgellm.memory.buffers import address
from edgellm.packed.format import DTYPES
from edgellm.packed.header import REMEDY, PackedHeader, read_header


@dataclass(frozen=True)
class Weight:
    """A quantized matrix [N rows, C columns], mapped read-only."""

    quant: Quant
    rows: int  # N
    columns: int  # C
    parts: dict[str, NDArray[Any]]  # as Quant.parts says

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

    def dense(self) -> NDArray[np.float32]:
        """What it stands for, float32 [N, C]."""
        return self.quant.decode(self.parts, self.rows)


class PackedModel:
    """A mapped packed file; all arrays are views of the mapping and read-only."""

    def __init__(self, header: PackedHeader, mapping: mmap.mmap) -> None:
        self.header = header
        self.path = header.path
        self.nbytes = header.nbytes  # bytes mapped, the whole file
        self.network = header.network
        self.provenance = header.provenance
        self.report = header.report
        self.chat_template = header.chat_template
        self._mapping: mmap.mmap | None = mapping
        self.vocabulary = self._view("tokenizer").tobytes().rstrip(b" ")
        if not self.vocabulary:
            raise PackedFileError(f"{self.path}: the tokenizer is empty; {REMEDY}")
        self.weights = {name: self._weight(name, shape) for name, shape in self.network.matrices().items()}
        names = [spec.name for spec in self.network.tensors() if not spec.is_matrix and spec.name in header.table]
        self.vectors: dict[str, NDArray[np.float32]] = {name: self._view(name) for name in names}

    @property
    def address(self) -> int:
        """Where the data begins in memory: tensor T lies at `header.table[T].begin` from here."""
        assert self._mapping is not None
        return address(np.frombuffer(self._mapping, np.uint8, 0, self.header.data_start))

    # What families.base.Weights asks for

    def matrix(self, name: str) -> NDArray[np.float32]:
        """A matrix, dequantized, [N, C]."""
        return self.weights[name].dense()

    def vector(self, name: str) -> NDArray[np.float32]:
        return self.vectors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.vectors

    def close(self) -> None:
        """Let go of the mapping; it goes for good when the last array taken from it goes."""
        self.weights = {}
        self.vectors = {}
        if self._mapping is not None:
            with contextlib.suppress(BufferError):  # somebody holds an array: unmapping under it would crash
                self._mapping.close()
            self._mapping = None

    def _weight(self, name: str, shape: tuple[int, int]) -> Weight:
        quant = self.header.quants[name]
        return Weight(quant, *shape, {part: self._view(f"{name}.{part}") for part in quant.parts(*shape)})

    def _view(self, name: str) -> NDArray[Any]:
        assert self._mapping is not None
        tensor = self.header.table[name]
        begin = self.header.data_start + tensor.begin
        count = math.prod(tensor.shape)
        array: NDArray[Any] = np.frombuffer(self._mapping, DTYPES[tensor.dtype], count, begin)
        if tensor.dtype[0] == "F" and not _all_finite(array):
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
