"""Writes a packed file, streaming and atomic.

The table of tensors is known before the first of them, so every part goes straight to its place and the header is
written last. The file appears under its name only when it is whole.
"""

import json
import os
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgellm.families.network import Network
from edgellm.kernels.panels import PANEL
from edgellm.kernels.quants.quant import Parts, Quant
from edgellm.packed.format import ALIGNMENT, FORMAT, VERSION, tensor_table

REPORT_BYTES = 16384  # header space kept for the report, which is known last,
REPORT_BYTES_PER_TENSOR = 512  # and per tensor of the file


class PackedWriter:
    """Write all weights and vectors, in any order, then `finish`; leaving the `with` block earlier leaves no file."""

    def __init__(
        self,
        path: Path,
        network: Network,
        quants: Mapping[str, Quant],
        *,
        vocabulary: bytes,
        chat_template: str | None,
        provenance: Mapping[str, str],
        optional: Collection[str] = (),
    ) -> None:
        self._path = path
        vocabulary += b" " * (-len(vocabulary) % ALIGNMENT)
        self._table = tensor_table(network, quants, tokenizer_bytes=len(vocabulary), optional=optional)
        self._missing = {name: tensor.nbytes for name, tensor in self._table.items()}
        self._metadata = {
            "format": FORMAT,
            "version": VERSION,
            "config": json.dumps(dict(network.config)),
            "layouts": json.dumps({name: quants[name].name for name in network.matrices()}),
            "provenance": json.dumps(dict(provenance)),
        }
        if chat_template is not None:
            self._metadata["chat_template"] = chat_template
        space = len(self._header_json({})) + REPORT_BYTES + REPORT_BYTES_PER_TENSOR * len(self._table)
        self._data_start = -(-(8 + space) // ALIGNMENT) * ALIGNMENT
        self._partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        self._file = self._partial.open("xb")
        try:
            self._write("tokenizer", 0, np.frombuffer(vocabulary, np.uint8))
        except BaseException:
            self._discard()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._file.closed:
            self._discard()

    def write_rows(self, name: str, first_row: int, parts: Parts) -> None:
        """Rows of a matrix as its weight format has them; first_row is a multiple of 32."""
        assert first_row % PANEL == 0, first_row
        for part, array in parts.items():
            tensor = self._table[f"{name}.{part}"]
            assert array.shape[1:] == tensor.shape[1:], (name, array.shape, tensor.shape)
            self._write(f"{name}.{part}", first_row // PANEL * array[0].nbytes, array)

    def write_vector(self, name: str, values: NDArray[np.float32]) -> None:
        """A vector float32 of exactly the expected length."""
        assert values.shape == self._table[name].shape, (name, values.shape)
        self._write(name, 0, values)

    def finish(self, report: Mapping[str, Any]) -> None:
        """Write the header, make all durable, and let the file appear under its name, replacing an older one."""
        assert not any(self._missing.values()), [name for name, nbytes in self._missing.items() if nbytes]
        header = self._header_json(report)
        space = self._data_start - 8
        assert len(header) <= space, "the report is longer than the space kept for it"
        self._file.seek(0)
        self._file.write(space.to_bytes(8, "little") + header.ljust(space))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        try:
            self._partial.replace(self._path)
        except BaseException:
            self._partial.unlink()
            raise
        fsync_folder(self._path.parent)

    def _header_json(self, report: Mapping[str, Any]) -> bytes:
        tensors = {name: tensor.to_json() for name, tensor in self._table.items()}
        metadata = self._metadata | {"report": json.dumps(report)}
        return json.dumps({"__metadata__": metadata} | tensors).encode()

    def _write(self, name: str, offset: int, array: NDArray[Any]) -> None:
        tensor = self._table[name]
        assert offset >= 0 and offset + array.nbytes <= tensor.nbytes, (name, offset, array.nbytes, tensor.nbytes)
        self._file.seek(self._data_start + tensor.begin + offset)
        self._file.write(np.ascontiguousarray(array).data)
        self._missing[name] -= array.nbytes

    def _discard(self) -> None:
        self._file.close()
        self._partial.unlink()


def fsync_folder(folder: Path) -> None:
    """Make a rename durable; Windows cannot open folders and needs no such thing."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
