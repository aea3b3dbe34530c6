"""Keys and values in bf16. A head's block of 32 tokens: keys [E/2][32 token][2], then values [16 pair][E][2 token]."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.kv_formats.kv_format import Array
from edgellm.kernels.ops import KV_BLOCK
from edgellm.kernels.reference import bf16


class BF16:
    """2 bytes an entry."""

    name = meaning = "bf16"

    def head_bytes(self, head_size: int) -> int:
        return 2 * KV_BLOCK * head_size * 2

    def prepare(self, x: Array) -> Array:
        return x

    def write(self, block: NDArray[np.uint8], slot: int, key: Array, value: Array) -> None:
        keys, values = self._views(block, len(key))
        keys[:, slot] = _bits(key).reshape(-1, 2)
        values[slot // 2, :, slot % 2] = _bits(value)

    def read(self, block: NDArray[np.uint8], head_size: int) -> tuple[Array, Array]:
        keys, values = self._views(block, head_size)
        return (
            _floats(keys.transpose(1, 0, 2).reshape(KV_BLOCK, head_size)),
            _floats(values.transpose(0, 2, 1).reshape(KV_BLOCK, head_size)),
        )

    def _views(self, block: NDArray[np.uint8], head_size: int) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        keys, values = block.view(np.uint16).reshape(2, -1)
        return keys.reshape(head_size // 2, KV_BLOCK, 2), values.reshape(KV_BLOCK // 2, head_size, 2)


def _bits(x: Array) -> NDArray[np.uint16]:
    rounded: NDArray[np.float32] = bf16(x)
    return (rounded.view(np.uint32) >> 16).astype(np.uint16)


def _floats(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


FORMAT = BF16()


def entry_points() -> dict[str, Callable[..., None]]:
    from edgellm.kernels.cpu.attention import bf16

    return bf16.kernels()
