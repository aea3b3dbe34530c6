"""The KV cache: blocks of KV_BLOCK tokens from one arena, and sequences made of them.

    arena    uint8 [blocks][block_stride], a block as kernels/ops.py has it: [L][K][keys, values] in bf16 or INT8

A block is one contiguous piece of all layers, so that it can be shared, counted and stored as a whole.
"""

from collections import deque
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgellm.config import ModelConfig
from edgellm.errors import EdgeLLMError
from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.buffers import address, aligned_zeros

KVDtype = Literal["bf16", "int8"]
KV_DTYPES: tuple[KVDtype, ...] = get_args(KVDtype)


def kv_bytes_per_token(config: ModelConfig, dtype: KVDtype) -> int:
    """Bytes of keys and values that a token keeps in all layers; INT8 has a scale in bf16 for every 32 entries."""
    bytes_of_32 = 64 if dtype == "bf16" else 34
    return 2 * config.layers * config.kv_heads * (config.head_size // 32) * bytes_of_32


class KVMemoryError(EdgeLLMError):
    """No free block is left."""


class KVCache:
    """An arena of blocks and the list of free ones."""

    def __init__(self, config: ModelConfig, num_blocks: int, dtype: KVDtype = "bf16") -> None:
        self.dtype = dtype
        self.block_stride = KV_BLOCK * kv_bytes_per_token(config, dtype)
        self.layer_stride = self.block_stride // config.layers
        self.head_stride = self.layer_stride // config.kv_heads
        self.num_blocks = num_blocks
        self._arena = aligned_zeros(num_blocks * self.block_stride, np.uint8)
        self._free = deque(range(num_blocks))
        self._held: set[int] = set()

    @property
    def address(self) -> int:
        return address(self._arena)

    def block_view(self, block: int) -> NDArray[np.uint8]:
        """The bytes of a block, [block_stride]."""
        return self._arena[block * self.block_stride : (block + 1) * self.block_stride]

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self) -> int:
        """The number of a block that was free. Errors: KVMemoryError."""
        if not self._free:
            raise KVMemoryError(
                f"all {self.num_blocks} KV blocks ({self.num_blocks * KV_BLOCK} tokens) are in use; close a stream"
            )
        block = self._free.popleft()
        self._held.add(block)
        return block

    def release(self, block: int) -> None:
        """Give back an allocated block. It is the next to be reused, while its memory is still warm."""
        assert block in self._held, block
        self._held.remove(block)
        self._free.appendleft(block)

    def check_integrity(self) -> None:
        """Every block is either free or held, once."""
        assert len(self._free) + len(self._held) == self.num_blocks, (len(self._free), len(self._held))
        assert self._held.isdisjoint(self._free)
        assert len(set(self._free)) == len(self._free)


class Sequence:
    """The blocks of one text, in order: position p lies in blocks[p // KV_BLOCK]."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self.blocks: list[int] = []
        self.length = 0  # tokens whose keys and values are in the cache

    def reserve(self, num_tokens: int) -> None:
        """Make room for `num_tokens` in all. Errors: KVMemoryError, with nothing kept of the new room."""
        before = len(self.blocks)
        try:
            while len(self.blocks) * KV_BLOCK < num_tokens:
                self.blocks.append(self._cache.allocate())
        except KVMemoryError:
            self._shrink(before)
            raise

    def truncate(self, num_tokens: int) -> None:
        """Forget all but the first `num_tokens` tokens."""
        assert num_tokens <= self.length, (num_tokens, self.length)
        self.length = num_tokens
        self._shrink(-(-num_tokens // KV_BLOCK))

    def _shrink(self, num_blocks: int) -> None:
        while len(self.blocks) > num_blocks:
            self._cache.release(self.blocks.pop())
