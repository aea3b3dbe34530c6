"""The packed file: one model in one file that is mapped and used as it lies.

A safetensors container (any reader of that format lists it):

    8 bytes     H, length of the header, little endian
    H bytes     JSON, padded with spaces so that the data begins at a multiple of 64
    data        the tensors of `tensor_table`, in its order, without holes, each at a multiple of 64 but
                for ragged vectors at the end

A weight matrix is a tensor NAME.PART for every part of its weight format (`kernels/quants`: codes, scales, ...); a
vector is NAME (F32); the vocabulary is "tokenizer" (U8, padded with spaces to a multiple of 64). `__metadata__` holds,
each as a string:

    format          "edgellm-packed"          version         "1"
    config          JSON, the family's        layouts         JSON, {weight: name of its weight format}
    provenance      JSON, {what: text}        report          JSON, what the converter did and lost
    chat_template   text, if the model has one

`Network.tensors` says which tensors a model has; a file must hold exactly those, and may leave out optional ones.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgellm.families.network import Network, TensorSpec
from edgellm.kernels.quants.quant import Quant

FORMAT = "edgellm-packed"
VERSION = "1"
ALIGNMENT = 64  # bytes
DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: `begin` counts bytes from the start of the data."""

    dtype: str  # a key of DTYPES
    shape: tuple[int, ...]
    begin: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def to_json(self) -> dict[str, Any]:
        return {
            "dtype": self.dtype,
            "shape": list(self.shape),
            "data_offsets": [self.begin, self.begin + self.nbytes],
        }


def tensor_table(
    network: Network, quants: Mapping[str, Quant], *, tokenizer_bytes: int, optional: Collection[str]
) -> dict[str, Tensor]:
    """All tensors of a file, in its order: parts of matrices, vectors, the tokenizer, and the optional ones present.

    Vectors whose size is no multiple of 64 bytes come last, so that all others begin at one.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    parts: list[tuple[str, str, tuple[int, ...]]] = []
    for name, (rows, columns) in network.matrices().items():
        specs = quants[name].parts(rows, columns)
        parts += [(f"{name}.{part}", names[np.dtype(spec.dtype)], spec.shape) for part, spec in specs.items()]
    vectors = [spec for spec in network.tensors() if not spec.is_matrix]
    early = [spec for spec in vectors if not spec.is_optional and not _is_ragged(spec)]
    late = [spec for spec in vectors if spec not in early and (not spec.is_optional or spec.name in optional)]
    parts += [(spec.name, "F32", spec.shape) for spec in early]
    parts.append(("tokenizer", "U8", (tokenizer_bytes,)))
    parts += [(spec.name, "F32", spec.shape) for spec in late]
    table: dict[str, Tensor] = {}
    begin = 0
    for name, dtype, shape in parts:
        assert begin % (4 if dtype == "F32" else ALIGNMENT) == 0, name
        table[name] = Tensor(dtype, shape, begin)
        begin += table[name].nbytes
    return table


def _is_ragged(spec: TensorSpec) -> bool:
    return math.prod(spec.shape) * 4 % ALIGNMENT != 0
