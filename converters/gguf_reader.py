"""Reads a GGUF file (version 2 or 3, little endian) without believing it.

    "GGUF"  version u32  tensor count u64  metadata count u64
    metadata     name, type u32, value                       a name or text is its length u64 and UTF-8
    tensors      name, rank u32, dimensions u64 (columns first), type u32, offset u64
    padding to the alignment, then the tensors' data

The gguf package has a reader too; it takes 7 s for a vocabulary of 128k tokens, and trusts counts in hostile files.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from edgellm.errors import GGUFError

MAX_METADATA_BYTES = 1 << 28  # the largest vocabularies need a tenth of it
MAX_VALUES = 1 << 22  # array elements in the whole file; each costs up to 60 bytes as a Python object
MAX_ENTRIES = 1 << 16  # tensors, and metadata entries
MAX_RANK = 4
DEFAULT_ALIGNMENT = 32
REMEDY = "the file is damaged or not a GGUF model: get it again"

_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("u1"),  # bool
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_U64 = struct.Struct("<Q")


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor as it lies in the file; read-only."""

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]  # as NumPy has it: rows first, columns last
    data: NDArray[np.uint8]  # all bytes, row after row


@dataclass(frozen=True)
class GGUFFile:
    """A mapped GGUF file; the mapping goes when the last array taken from it goes."""

    path: Path
    nbytes: int
    metadata: dict[str, Any]  # int, float, bool, str, or a list of one of these
    tensors: dict[str, GGUFTensor]  # empty in a vocabulary-only file


def open_gguf(path: str | Path) -> GGUFFile:
    """Map a GGUF file and check everything that its header says; GGUFError."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 24:
                raise GGUFError(f"{path} holds {size} bytes, too few for a header; {REMEDY}")
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise GGUFError(f"{path} cannot be read ({error.strerror or error}); check the path") from error
    try:
        cursor = _Cursor(mapping, size)
        num_tensors, num_entries = _read_start(cursor)
        metadata = _read_metadata(cursor, num_entries)
        tensors = _read_tensors(cursor, num_tensors, _alignment(metadata))
    except GGUFError as error:
        raise GGUFError(f"{path}: {error}; {REMEDY}") from error.__cause__
    return GGUFFile(path, size, metadata, tensors)


class _Cursor:
    """A position in the header; every step is checked against the file's length."""

    def __init__(self, mapping: mmap.mmap, size: int) -> None:
        self.mapping = mapping
        self.size = size
        self.position = 0
        self.values_left = MAX_VALUES
        self._limit = min(size, MAX_METADATA_BYTES)

    def skip(self, count: int, what: str) -> int:
        """Step over `count` bytes; returns where they begin."""
        begin = self.position
        if count > self._limit - begin:
            raise GGUFError(f"{what} at byte {begin} needs {count} bytes, {self._limit - begin} are left")
        self.position = begin + count
        return begin

    def number(self, dtype: np.dtype[Any], what: str) -> Any:
        begin = self.skip(dtype.itemsize, what)
        return np.frombuffer(self.mapping, dtype, 1, begin)[0].item()

    def u32(self, what: str) -> int:
        return int(self.number(_SCALARS[4], what))

    def u64(self, what: str) -> int:
        (value,) = _U64.unpack_from(self.mapping, self.skip(8, what))
        return int(value)

    def text(self, what: str) -> str:
        length = self.u64(what)
        begin = self.skip(length, what)
        try:
            return self.mapping[begin : begin + length].decode()
        except UnicodeDecodeError as error:
            raise GGUFError(f"{what} at byte {begin} is not UTF-8") from error

    def value(self, kind: int, what: str) -> Any:
        """A metadata value that is not an array."""
        if kind == _STRING:
            return self.text(what)
        if kind not in _SCALARS:
            raise GGUFError(f"{what} has the unknown type {kind}")
        number = self.number(_SCALARS[kind], what)
        return _truths([number], what)[0] if kind == _BOOL else number

    def array(self, what: str) -> list[Any]:
        kind = self.u32(what)
        count = self.u64(what)
        if count > self.values_left:
            raise GGUFError(f"{what} has {count} elements, more than any sound model")
        self.values_left -= count
        if kind == _STRING:
            return [self.text(what) for _ in range(count)]
        if kind not in _SCALARS:
            raise GGUFError(f"{what} is an array of the type {kind}, which is unknown or nested")
        begin = self.skip(count * _SCALARS[kind].itemsize, what)
        values: list[Any] = np.frombuffer(self.mapping, _SCALARS[kind], count, begin).tolist()
        return _truths(values, what) if kind == _BOOL else values


def _truths(values: list[int], what: str) -> list[bool]:
    if any(value > 1 for value in values):
        raise GGUFError(f"{what} is {max(values)}, neither true nor false")
    return [value == 1 for value in values]


def _read_start(cursor: _Cursor) -> tuple[int, int]:
    """The number of tensors and of metadata entries."""
    magic = cursor.mapping[cursor.skip(4, "magic") : 4]
    if magic != b"GGUF":
        raise GGUFError(f"the file begins with {magic!r}, not b'GGUF'")
    version = cursor.u32("version")
    if version not in (2, 3):
        raise GGUFError(f"GGUF version {version} (big endian?) is not read; this edgellm reads versions 2 and 3")
    counts = cursor.u64("tensor count"), cursor.u64("metadata count")
    if max(counts) > MAX_ENTRIES:
        raise GGUFError(f"{counts[0]} tensors and {counts[1]} metadata entries are more than any sound model has")
    return counts


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.text("a metadata name")
        kind = cursor.u32(f"metadata {key!r:.100}")
        if key in metadata:
            raise GGUFError(f"metadata {key!r:.100} occurs twice")
        what = f"metadata {key!r:.100}"
        metadata[key] = cursor.array(what) if kind == _ARRAY else cursor.value(kind, what)
    return metadata


def _alignment(metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 8 <= alignment <= 65536 or alignment & (alignment - 1):
        raise GGUFError(f"general.alignment {alignment!r:.100} is not a power of two in 8..65536")
    return alignment


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, GGUFTensor]:
    infos: dict[str, tuple[GGMLQuantizationType, tuple[int, ...], int, int]] = {}
    for _ in range(count):
        name = cursor.text("a tensor name")
        if name in infos:
            raise GGUFError(f"tensor {name!r:.100} occurs twice")
        infos[name] = _read_info(cursor, f"tensor {name!r:.100}", alignment)
    data_start = -(-cursor.position // alignment) * alignment
    end = 0
    for name, (_, _, offset, nbytes) in sorted(infos.items(), key=lambda item: item[1][2]):
        if offset < end:
            raise GGUFError(f"tensor {name!r:.100} at offset {offset} overlaps the one before, which ends at {end}")
        end = offset + nbytes
        if data_start + end > cursor.size:
            raise GGUFError(f"tensor {name!r:.100} ends at byte {data_start + end} of a file of {cursor.size} bytes")
    return {
        name: GGUFTensor(name, kind, shape, np.frombuffer(cursor.mapping, np.uint8, nbytes, data_start + offset))
        for name, (kind, shape, offset, nbytes) in infos.items()
    }


def _read_info(cursor: _Cursor, what: str, alignment: int) -> tuple[GGMLQuantizationType, tuple[int, ...], int, int]:
    """Type, shape (rows first), offset and length in bytes of a tensor."""
    rank = cursor.u32(what)
    if not 1 <= rank <= MAX_RANK:
        raise GGUFError(f"{what} has {rank} dimensions, not 1..{MAX_RANK}")
    shape = tuple(cursor.u64(what) for _ in range(rank))[::-1]
    number = cursor.u32(what)
    offset = cursor.u64(what)
    try:
        kind = GGMLQuantizationType(number)
    except ValueError as error:
        raise GGUFError(f"{what} has the unknown type {number}") from error
    block_size, block_bytes = GGML_QUANT_SIZES[kind]
    if 0 in shape or shape[-1] % block_size:
        raise GGUFError(
            f"{what} of the type {kind.name} has the shape {shape}; rows must be whole blocks of {block_size}"
        )
    if offset % alignment:
        raise GGUFError(f"{what} lies at offset {offset}, not at a multiple of {alignment}")
    return kind, shape, offset, math.prod(shape) // block_size * block_bytes
