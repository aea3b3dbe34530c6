"""The packed file: one model in one file that is mapped and used as it lies.

A safetensors container (any reader of that format lists it):

    8 bytes     H, length of the header, little endian
    H bytes     JSON, padded with spaces so that the data begins at a multiple of 64
    data        the tensors of `tensor_table`, in its order, without holes, each at a multiple of 64

A weight matrix is the tensors NAME.codes (U8), NAME.scales (F16) and, where its layout has minimums, NAME.mins (F16),
as `kernels/layouts.py` draws them; a vector is NAME (F32); the vocabulary is "tokenizer" (U8, padded with spaces to
a multiple of 64). `__metadata__` holds, each as a string:

    format          "edgellm-packed"          version         "1"
    config          JSON, ModelConfig         layouts         JSON, {weight: layout name}
    provenance      JSON, {what: text}        report          JSON, what the converter did and lost
    chat_template   text, if the model has one

`expected_weights` and `expected_vectors` say which tensors a config needs; a file must hold exactly those.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgellm.config import ModelConfig
from edgellm.kernels.layouts import Layout

FORMAT = "edgellm-packed"
VERSION = "1"
ALIGNMENT = 64  # bytes
ITEM_BYTES = {"U8": 1, "F16": 2, "F32": 4}


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: `begin` counts bytes from the start of the data."""

    dtype: str  # "U8", "F16" or "F32"
    shape: tuple[int, ...]
    begin: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def to_json(self) -> dict[str, Any]:
        return {
            "dtype": self.dtype,
            "shape": list(self.shape),
            "data_offsets": [self.begin, self.begin + self.nbytes],
        }


def expected_weights(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """The weight matrices of a model, name -> (rows, columns), in the file's order."""
    width, ffn = config.width, config.ffn_width
    query, key = config.heads * config.head_size, config.kv_heads * config.head_size
    shapes = {"embedding": (config.vocabulary, width)}
    for layer in range(config.layers):
        shapes |= {
            f"layers.{layer}.attention.q": (query, width),
            f"layers.{layer}.attention.k": (key, width),
            f"layers.{layer}.attention.v": (key, width),
            f"layers.{layer}.attention.output": (width, query),
            f"layers.{layer}.ffn.gate": (ffn, width),
            f"layers.{layer}.ffn.up": (ffn, width),
            f"layers.{layer}.ffn.down": (width, ffn),
        }
    if not config.tied_head:
        shapes["head"] = (config.vocabulary, width)
    return shapes


def expected_vectors(config: ModelConfig) -> dict[str, int]:
    """The float32 vectors that a model must have, name -> length; "rope_factors" [rope_size/2] may come on top."""
    sizes: dict[str, int] = {}
    for layer in range(config.layers):
        sizes |= {f"layers.{layer}.attention.norm": config.width, f"layers.{layer}.ffn.norm": config.width}
    return sizes | {"norm": config.width}


def tensor_table(
    config: ModelConfig, layouts: Mapping[str, Layout], *, tokenizer_bytes: int, rope_factors: bool
) -> dict[str, Tensor]:
    """All tensors of a file, in its order.

    rope_factors come last: the only tensor whose size need not be a multiple of 64, so that all begin aligned.
    """
    parts: list[tuple[str, str, tuple[int, ...]]] = []
    for name, (rows, columns) in expected_weights(config).items():
        layout = layouts[name]
        parts.append((f"{name}.codes", "U8", layout.codes_shape(rows, columns)))
        parts.append((f"{name}.scales", "F16", layout.scales_shape(rows, columns)))
        if layout.asymmetric:
            parts.append((f"{name}.mins", "F16", layout.scales_shape(rows, columns)))
    parts += [(name, "F32", (size,)) for name, size in expected_vectors(config).items()]
    parts.append(("tokenizer", "U8", (tokenizer_bytes,)))
    if rope_factors:
        parts.append(("rope_factors", "F32", (config.rope_size // 2,)))
    table: dict[str, Tensor] = {}
    begin = 0
    for name, dtype, shape in parts:
        assert begin % ALIGNMENT == 0, name
        table[name] = Tensor(dtype, shape, begin)
        begin += table[name].nbytes
    return table
