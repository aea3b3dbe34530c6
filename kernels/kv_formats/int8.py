"""Keys and values in INT8, with a bf16 scale for every 32 entries of a token.

A head's block of 32 tokens: keys int8 [E][32 token], values int8 [32 token][E], scales bf16 [keys, values][E/32][32
token]. Keys went through the Hadamard transform of 32 entries (simd/hadamard.py), and so do the queries, which leaves
their products as they were.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.kv_formats.kv_format import Array
from edgellm.kernels.ops import KV_BLOCK
from edgellm.kernels.reference import dequantize, hadamard, quantize_kv


class INT8:
    """8.5 bits an entry."""

    name = "int8"
    meaning = "int8, hadamard"

    def head_bytes(self, head_size: int) -> int:
        return 2 * KV_BLOCK * (head_size + head_size // 32 * 2)

    def prepare(self, x: Array) -> Array:
        prepared: Array = hadamard(x)
        return prepared

    def write(self, block: NDArray[np.uint8], slot: int, key: Array, value: Array) -> None:
        keys, values, scales = self._views(block, len(key))
        (keys[:, slot], key_scales) = quantize_kv(key)
        (values[slot], value_scales) = quantize_kv(value)
        for which, kept in enumerate((key_scales, value_scales)):
            scales[which, :, slot] = (kept.view(np.uint32) >> 16).astype(np.uint16)

    def read(self, block: NDArray[np.uint8], head_size: int) -> tuple[Array, Array]:
        keys, values, bits = self._views(block, head_size)
        scales = (bits.astype(np.uint32) << 16).view(np.float32).transpose(0, 2, 1)  # [which][token][E/32]
        return (
            dequantize(keys.T, scales[0]).astype(np.float32),
            dequantize(values, scales[1]).astype(np.float32),
        )

    def _views(
        self, block: NDArray[np.uint8], head_size: int
    ) -> tuple[NDArray[np.int8], NDArray[np.int8], NDArray[np.uint16]]:
        size = head_size * KV_BLOCK
        keys = block[:size].view(np.int8)
        values = block[size : 2 * size].view(np.int8)
        scales = block[2 * size :].view(np.uint16).reshape(2, head_size // 32, KV_BLOCK)
        return keys.reshape(head_size, KV_BLOCK), values.reshape(KV_BLOCK, head_size), scales


FORMAT = INT8()


def entry_points() -> dict[str, Callable[..., None]]:
    from edgellm.kernels.cpu.attention import int8

    return int8.kernels()
