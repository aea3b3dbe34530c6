"""Reads and checks the header of a packed file: all that is known of a model without touching its weights."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edgellm.errors import PackedFileError, UnsupportedModelError
from edgellm.families import find_family
from edgellm.families.network import Network
from edgellm.kernels.quants import quants
from edgellm.kernels.quants.quant import Quant
from edgellm.packed.format import ALIGNMENT, FORMAT, VERSION, Tensor, tensor_table

MAX_HEADER = 1 << 24  # bytes; a thousand layers need a tenth of it
REMEDY = "the file is damaged or not a packed model: pull the model again or convert it again"


@dataclass(frozen=True)
class PackedHeader:
    """What a packed file says of itself, checked against its length; see `format`."""

    path: Path
    nbytes: int  # of the whole file
    network: Network
    quants: dict[str, Quant]  # the weight format of each matrix
    provenance: dict[str, str]
    report: dict[str, Any]
    chat_template: str | None
    table: dict[str, Tensor]
    data_start: int  # bytes

    @property
    def num_parameters(self) -> int:
        return sum(
            math.prod(spec.shape) for spec in self.network.tensors() if spec.is_matrix or spec.name in self.table
        )

    @property
    def bits_per_weight(self) -> float:
        """Bits stored per entry of the weight matrices, scales included."""
        sizes = self._weights_by_quant()
        return sum(quant.bits_per_weight * size for quant, size in sizes.items()) / sum(sizes.values())

    @property
    def quant_names(self) -> list[str]:
        """The weight formats in use, that of most weights first."""
        sizes = self._weights_by_quant()
        return [quant.name for quant in sorted(sizes, key=lambda quant: -sizes[quant])]

    def _weights_by_quant(self) -> dict[Quant, int]:
        sizes: dict[Quant, int] = {}
        for name, (rows, columns) in self.network.matrices().items():
            quant = self.quants[name]
            sizes[quant] = sizes.get(quant, 0) + rows * columns
        return sizes


def open_header(path: Path) -> PackedHeader:
    """The header of a packed file; PackedFileError."""
    try:
        with path.open("rb") as file:
            return read_header(path, file)
    except OSError as error:
        raise PackedFileError(f"{path} cannot be read ({error.strerror or error}); check the path") from error


def read_header(path: Path, file: BinaryIO) -> PackedHeader:
    """The header of an open packed file. Nothing is believed before it is checked; PackedFileError."""
    try:
        return _read(path, file)
    except PackedFileError as error:
        raise PackedFileError(f"{path}: {error}; {REMEDY}") from error.__cause__


def _read(path: Path, file: BinaryIO) -> PackedHeader:
    size = file.seek(0, 2)
    header = _read_json(file, size)
    data_start = file.tell()
    metadata = _read_metadata(header.pop("__metadata__", None))
    if metadata["config"].get("layers", 0) not in range(len(header) + 1):  # before anything of that size is built
        raise PackedFileError(
            f"the config has {metadata['config']['layers']!r:.100} layers, the file {len(header)} tensors"
        )
    network = _read_network(metadata["config"])
    found = _read_quants(metadata["layouts"], network.matrices())
    table = _read_table(header, network, found)
    end = data_start + max(tensor.begin + tensor.nbytes for tensor in table.values())
    if end != size:
        raise PackedFileError(f"the file holds {size} bytes, its header says {end}")
    return PackedHeader(
        path=path,
        nbytes=size,
        network=network,
        quants=found,
        provenance=metadata["provenance"],
        report=metadata["report"],
        chat_template=metadata["chat_template"],
        table=table,
        data_start=data_start,
    )


def _read_json(file: BinaryIO, size: int) -> dict[str, Any]:
    """The header's JSON object; leaves the file where the data begins."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= length <= min(size - 8, MAX_HEADER):
        raise PackedFileError(f"a header of {length} bytes does not fit a file of {size} bytes")
    if (8 + length) % ALIGNMENT:
        raise PackedFileError(f"the data begins at byte {8 + length}, not at a multiple of {ALIGNMENT}")
    return _parse_json("header", file.read(length))


def _parse_json(what: str, text: str | bytes) -> dict[str, Any]:
    """A JSON object without duplicate keys, NaN, infinities or half surrogate pairs."""
    try:
        result = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
        json.dumps(result, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise PackedFileError(f"the {what} is not JSON ({str(error)[:200]})") from error
    if not isinstance(result, dict):
        raise PackedFileError(f"the {what} is not a JSON object")
    return result


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("the same key twice")
    return result


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _read_metadata(metadata: Any) -> dict[str, Any]:
    """`__metadata__` with its JSON entries parsed; chat_template None if there is none."""
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise PackedFileError("__metadata__ is missing or not made of texts")
    if metadata.get("format") != FORMAT:
        raise PackedFileError(f"format is {metadata.get('format')!r:.100}, not {FORMAT!r}")
    if metadata.get("version") != VERSION:
        raise PackedFileError(f"format version is {metadata.get('version')!r:.100}, this edgellm reads {VERSION!r}")
    parsed = {}
    for key in ("config", "layouts", "provenance", "report"):
        if key not in metadata:
            raise PackedFileError(f"__metadata__ has no {key}")
        parsed[key] = _parse_json(key, metadata[key])
    if not all(isinstance(value, str) for value in parsed["provenance"].values()):
        raise PackedFileError("provenance is not made of texts")
    return parsed | {"chat_template": metadata.get("chat_template")}


def _read_network(config: dict[str, Any]) -> Network:
    architecture = config.get("architecture")
    if not isinstance(architecture, str):
        raise PackedFileError(f"the config's architecture is {architecture!r:.100}, not a text")
    try:
        return find_family(architecture).network(config)
    except UnsupportedModelError as error:
        raise PackedFileError(str(error)) from error


def _read_quants(data: dict[str, Any], matrices: Mapping[str, tuple[int, int]]) -> dict[str, Quant]:
    if data.keys() != matrices.keys():
        names = sorted(data.keys() ^ matrices.keys())
        raise PackedFileError(f"layouts do not match the config's weights; first difference: {names[0]!r:.100}")
    found = {}
    for name, (_, columns) in matrices.items():
        quant = quants().get(data[name]) if isinstance(data[name], str) else None
        if quant is None:
            raise PackedFileError(f"{name} has the layout {data[name]!r:.100}; known are {', '.join(quants())}")
        if columns % quant.group:
            raise PackedFileError(f"{name} has {columns} columns, not a multiple of the group of {quant.name}")
        found[name] = quant
    return found


def _read_table(header: dict[str, Any], network: Network, found: Mapping[str, Quant]) -> dict[str, Tensor]:
    """The table that this network and these weight formats give, which the header must equal entry by entry."""
    table = tensor_table(network, found, tokenizer_bytes=_tokenizer_bytes(header), optional=header.keys())
    if header.keys() != table.keys():
        names = sorted(header.keys() ^ table.keys())
        where = "missing" if names[0] in table else "not expected"
        raise PackedFileError(f"tensor {names[0]!r:.100} is {where}")
    for name, tensor in table.items():
        if header[name] != tensor.to_json():
            raise PackedFileError(f"tensor {name} is {header[name]!r:.200}, expected {tensor.to_json()}")
    return table


def _tokenizer_bytes(header: dict[str, Any]) -> int:
    try:
        (size,) = header["tokenizer"]["shape"]
    except (KeyError, TypeError, ValueError) as error:
        raise PackedFileError("the tensor 'tokenizer' is missing or has no length") from error
    if type(size) is not int or size < 1 or size % ALIGNMENT:
        raise PackedFileError(f"the tokenizer's length {size!r:.100} is not a positive multiple of {ALIGNMENT}")
    return size
