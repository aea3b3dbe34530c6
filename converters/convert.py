"""A GGUF file in, a packed file out, streaming: peak extra memory is a few chunks of a tensor, never the model."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.converters.gguf_reader import GGUFFile, GGUFTensor, open_gguf
from edgellm.converters.tensors import match_tensors, read_network, to_float32
from edgellm.errors import GGUFError, OptionError, UnsupportedModelError
from edgellm.kernels.panels import PANEL
from edgellm.kernels.quants import exact_quants, quants
from edgellm.kernels.quants.quant import Quant
from edgellm.packed.write import PackedWriter
from edgellm.tokenizer.vocabulary import Vocabulary
from edgellm.version import __version__

CHUNK_WEIGHTS = 1 << 20  # weights converted at a time; some 30 bytes each while it lasts
DEFAULT_QUANT = "int8-g32"

Progress = Callable[[int, int, str], None]  # bytes of the source done, bytes in total, what is being worked on


@dataclass(frozen=True)
class TensorReport:
    """What became of one weight matrix."""

    name: str
    source: str  # GGUF's type
    quant: Quant
    num_weights: int
    squared_error: float  # of the stored against the source's weights, summed
    squared_norm: float  # of the source's weights, summed

    @property
    def relative_error(self) -> float:
        """Root mean square of the error by that of the weights; 0 where all codes were kept."""
        return math.sqrt(self.squared_error / self.squared_norm) if self.squared_norm else 0.0


@dataclass(frozen=True)
class Report:
    """What the converter stored and lost; the same, as JSON, is in the packed file."""

    tensors: tuple[TensorReport, ...]

    @property
    def bits_per_weight(self) -> float:
        bits = sum(tensor.quant.bits_per_weight * tensor.num_weights for tensor in self.tensors)
        return bits / sum(tensor.num_weights for tensor in self.tensors)

    @property
    def relative_error(self) -> float:
        norm = sum(tensor.squared_norm for tensor in self.tensors)
        return math.sqrt(sum(tensor.squared_error for tensor in self.tensors) / norm) if norm else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "bits_per_weight": self.bits_per_weight,
            "relative_error": self.relative_error,
            "tensors": {
                tensor.name: {
                    "source": tensor.source,
                    "layout": tensor.quant.name,
                    "relative_error": tensor.relative_error,
                }
                for tensor in self.tensors
            },
        }


def convert(
    source: Path,
    destination: Path,
    *,
    layout: str | None = None,
    name: str | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Pack a GGUF file.

    layout None keeps codes bit for bit where a weight format of ours holds them, and stores all else as int8-g32.
    A format by name is given to every matrix whose columns its group divides (else that of the next smaller group),
    except that one of 4 bits is not given to the embedding and the head: they stay as with None, because 4 bits there
    cost much quality and save little.

    name defaults to the file's own; sha256, if the caller knows it, saves reading the file for it.
    Errors: OptionError, GGUFError, UnsupportedModelError, TokenizerError.
    """
    asked = find_quant(layout)
    gguf = open_gguf(source)
    if destination.exists() and destination.samefile(source):
        raise OptionError(f"{destination} is the source itself; give another destination")
    family, network = read_network(gguf)
    tensors = match_tensors(gguf, family, network)
    vocabulary = Vocabulary.from_gguf(gguf.metadata).to_bytes()
    matrices = network.matrices()
    chosen = {name: choose_quant(name, tensors[name], columns, asked) for name, (_, columns) in matrices.items()}
    count = _Counter(progress, sum(tensors[weight].data.nbytes for weight in matrices), 0 if sha256 else gguf.nbytes)
    provenance = {
        "name": name or _text(gguf, "general.name") or source.stem,
        "source": source.name,
        "source_sha256": sha256 or file_sha256(source, lambda size: count(size, "checksum")),
        "license": _text(gguf, "general.license") or "unknown",
        "recipe": layout or "exact",
        "created_by": f"edgellm {__version__}",
    }
    with PackedWriter(
        destination,
        network,
        chosen,
        vocabulary=vocabulary,
        chat_template=_text(gguf, "tokenizer.chat_template"),
        provenance=provenance,
        optional=tensors.keys(),
    ) as writer:
        for vector in tensors.keys() - matrices.keys():
            values = _values(tensors[vector], tensors[vector].data, 1)
            writer.write_vector(vector, values.reshape(tensors[vector].shape))
        report = Report(
            tuple(_write_weight(writer, weight, tensors[weight], chosen[weight], count) for weight in matrices)
        )
        writer.finish(report.to_json())
    return report


def find_quant(name: str | None) -> Quant | None:
    """The weight format of that name. Errors: OptionError if there is none."""
    if name is not None and name not in quants():
        raise OptionError(f"layout {name!r:.100} is unknown; it must be one of: {', '.join(quants())}")
    return quants()[name] if name is not None else None


def choose_quant(name: str, tensor: GGUFTensor, columns: int, asked: Quant | None) -> Quant:
    """The weight format of a matrix, as `convert` explains it."""
    if asked is None or (asked.bits == 4 and name in ("embedding", "head")):
        asked = exact_quants().get(tensor.type.name, quants()[DEFAULT_QUANT])
    return asked.fitting(columns)


def file_sha256(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file in hex; progress is called with the number of bytes read since the last call."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            if progress is not None:
                progress(len(chunk))
    return digest.hexdigest()


def _write_weight(writer: PackedWriter, name: str, tensor: GGUFTensor, quant: Quant, count: "_Counter") -> TensorReport:
    rows, columns = tensor.shape
    data = tensor.data.reshape(rows, -1)
    step = max(PANEL, CHUNK_WEIGHTS // columns // PANEL * PANEL)
    squared_error = squared_norm = 0.0
    for first in range(0, rows, step):
        chunk = data[first : first + step]
        values = _values(tensor, chunk, len(chunk))
        transcode = quant.exact.get(tensor.type.name)
        parts = transcode(chunk) if transcode else quant.encode(values)
        if not all(np.isfinite(part).all() for part in parts.values() if part.dtype.kind == "f"):
            raise UnsupportedModelError(f"weights of {tensor.name} are too large for the f16 scales of {quant.name}")
        stored = quant.decode(parts, len(chunk))
        writer.write_rows(name, first, parts)
        squared_error += float(np.square(stored - values, dtype=np.float64).sum())
        squared_norm += float(np.square(values, dtype=np.float64).sum())
        count(chunk.nbytes, tensor.name)
    return TensorReport(name, tensor.type.name, quant, rows * columns, squared_error, squared_norm)


def _values(tensor: GGUFTensor, data: NDArray[np.uint8], rows: int) -> NDArray[np.float32]:
    values = to_float32(tensor.type, data, rows)
    if not np.isfinite(values).all():
        raise GGUFError(f"tensor {tensor.name} holds a number that is not finite; get the file again")
    return values


def _text(gguf: GGUFFile, key: str) -> str | None:
    value = gguf.metadata.get(key)
    if value is not None and not isinstance(value, str):
        raise GGUFError(f"{gguf.path}: metadata {key} is {value!r:.100}, not a text; get the file again")
    return value


class _Counter:
    """Adds up bytes for the progress callback."""

    def __init__(self, progress: Progress | None, *totals: int) -> None:
        self._progress = progress
        self._done = 0
        self._total = sum(totals)

    def __call__(self, nbytes: int, what: str) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(self._done, self._total, what)
