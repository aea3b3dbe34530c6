"""What a format of keys and values says of itself."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.ops import KV_BLOCK

Array = NDArray[Any]


class KVFormat(Protocol):
    """How a head's keys and values of a block of KV_BLOCK tokens lie, uint8 [head_bytes].

    Its kernels, in the file's `entry_points`, are named after it: score, values (ops.py, CACHE), query, key and value
    (ops.py, EPILOGUES), each with `_<name>`.
    """

    name: str  # as in options
    meaning: str  # names what the bytes mean: another one when they get another meaning, since they outlive us on disk

    def head_bytes(self, head_size: int) -> int:
        """Bytes of a head in a block."""

    def prepare(self, x: Array) -> Array:
        """Queries or rotated keys [..][E] as they are multiplied."""

    def write(self, block: NDArray[np.uint8], slot: int, key: Array, value: Array) -> None:
        """A token's prepared key and its value, float [E] each, into its slot of a head's block."""

    def read(self, block: NDArray[np.uint8], head_size: int) -> tuple[Array, Array]:
        """Prepared keys and values of a head's block, float32 [KV_BLOCK][E] each."""


def bytes_per_token(kv_format: KVFormat, head_size: int) -> int:
    """Bytes of a head's key and value."""
    return kv_format.head_bytes(head_size) // KV_BLOCK
