"""The KV cache: blocks of KV_BLOCK tokens from one arena, and sequences made of them.

    arena    uint8 [blocks][block_bytes], a block as state.PagedLayout has it

A block is one contiguous piece of all layers, so that it can be shared, counted and stored as a whole. It is

    free         nobody needs it
    held         by one sequence or more, which are counted
    evictable    by none, but the prefix cache knows what is in it: kept until its memory is needed
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import EdgeLLMError
from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.buffers import CAN_COMMIT, address, aligned_zeros, commit
from edgellm.memory.state import PagedLayout


class KVMemoryError(EdgeLLMError):
    """Sequences hold so many blocks that there are not enough for another."""


class KVCache:
    """An arena of blocks and the books about them."""

    def __init__(self, layout: PagedLayout, num_blocks: int) -> None:
        self.layout = layout
        self.num_blocks = num_blocks
        self.on_evict: Callable[[int], None] = lambda block: None  # told of a block that was known, and is free now
        self._arena = aligned_zeros((num_blocks, layout.block_bytes), np.uint8)
        self._free = deque(range(num_blocks))
        self._evictable: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._counts = [0] * num_blocks  # sequences that hold the block
        self._known: dict[int, int] = {}  # how many of a block's first tokens the prefix cache knows

    @property
    def address(self) -> int:
        return address(self._arena)

    @property
    def num_free(self) -> int:
        """Blocks that can be had without taking any from a sequence: free and evictable."""
        return len(self._free) + len(self._evictable)

    @property
    def num_known(self) -> int:
        """Blocks that the prefix cache knows."""
        return len(self._known)

    def block_view(self, block: int) -> NDArray[np.uint8]:
        """The block's bytes themselves, uint8 [block_bytes]."""
        view: NDArray[np.uint8] = self._arena[block]
        return view

    def copy_block(self, source: int, target: int) -> None:
        self._arena[target] = self._arena[source]

    def prepare(self, num_blocks: int) -> None:
        """Commit the memory of the next free blocks in the background, where the system can.

        Else it is committed when first written, which takes twice the time of writing, and on a virtual machine whose
        own memory is committed like this twenty times.
        """
        views = [self.block_view(block) for block in islice(self._free, num_blocks)]
        if CAN_COMMIT and views:
            threading.Thread(target=commit, args=views, name="edgellm-kv", daemon=True).start()

    # Who holds a block

    def allocate(self) -> int:
        """A block, held once: a free one, or else the evictable one least recently used. Errors: KVMemoryError."""
        return self.allocate_many(1)[0]

    def allocate_many(self, count: int) -> list[int]:
        """All of `count` blocks or none. Errors: KVMemoryError."""
        if count > self.num_free:
            raise KVMemoryError(
                f"{count} KV blocks of {KV_BLOCK} tokens are needed, {self.num_free} of {self.num_blocks} are free; "
                "end a request, or load the model with more kv_memory"
            )
        while len(self._free) < count:
            self.evict()
        blocks = [self._free.popleft() for _ in range(count)]
        for block in blocks:
            self._counts[block] = 1
        return blocks

    def share(self, block: int) -> None:
        """Hold a block that is held or evictable once more."""
        if self._counts[block] == 0:
            del self._evictable[block]
        self._counts[block] += 1

    def release(self, block: int) -> None:
        """Give back one hold. The last one makes it evictable, as the most recently used, or free."""
        assert self._counts[block] > 0, block
        self._counts[block] -= 1
        if self._counts[block] == 0:
            if block in self._known:
                self._evictable[block] = None
            else:
                self._free.appendleft(block)  # the next to be reused, while its memory is still warm

    # What the prefix cache knows

    def remember(self, block: int, num_tokens: int) -> None:
        """The prefix cache knows the first `num_tokens` tokens of a held block."""
        assert self._counts[block] > 0, block
        self._known[block] = num_tokens

    def forget(self, block: int) -> None:
        """The prefix cache doesn't know the block any more."""
        del self._known[block]
        if self._counts[block] == 0:
            del self._evictable[block]
            self._free.appendleft(block)

    def evict(self) -> bool:
        """Free the evictable block least recently used; False if there is none."""
        if not self._evictable:
            return False
        block = next(iter(self._evictable))
        self.forget(block)
        self.on_evict(block)
        return True

    def is_owned(self, block: int, num_tokens: int) -> bool:
        """Whether its only holder may write behind its first `num_tokens` tokens: nobody else needs what is there."""
        return self._counts[block] == 1 and self._known.get(block, 0) <= num_tokens

    def check_integrity(self) -> None:
        """Every block is in one state: free, evictable, which are known and not held, or held."""
        held = {block for block, count in enumerate(self._counts) if count > 0}
        free, evictable, known = set(self._free), set(self._evictable), set(self._known)
        assert min(self._counts, default=0) >= 0, self._counts
        assert len(free) == len(self._free), self._free
        assert len(free) + len(evictable) + len(held) == self.num_blocks, (free, evictable, held)
        assert free | evictable | held == set(range(self.num_blocks)), (free, evictable, held)
        assert known - held == evictable, (known, held, evictable)


class Sequence:
    """The blocks of one text, in order: position p lies in blocks[p // KV_BLOCK]."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self.blocks: list[int] = []
        self.length = 0  # tokens whose keys and values are in the cache
        self.names: list[bytes] = []  # of the first full blocks: those that the prefix cache knows

    def reserve(self, num_tokens: int) -> None:
        """Make room for `num_tokens` in all, before those behind `length` are written.

        A last block that others need is replaced by a copy of it:

            length                  v
            blocks    [ 0..31 ][ 32..40, others' 41..63 ]
            becomes   [ 0..31 ][ 32..40, room          ][ room ]

        Errors: KVMemoryError, with nothing changed but that there may be a copy.
        """
        index, used = divmod(self.length, KV_BLOCK)
        if used > 0 and num_tokens > self.length and not self._cache.is_owned(self.blocks[index], used):
            source, self.blocks[index] = self.blocks[index], self._cache.allocate()
            self._cache.copy_block(source, self.blocks[index])
            self._cache.release(source)  # first: it may make room for the rest
        missing = -(-num_tokens // KV_BLOCK) - len(self.blocks)
        if missing > 0:
            self.blocks += self._cache.allocate_many(missing)

    def truncate(self, num_tokens: int) -> None:
        """Forget all but the first `num_tokens` tokens; last blocks first, which makes them the first to be evicted."""
        assert num_tokens <= self.length, (num_tokens, self.length)
        self.length = num_tokens
        del self.names[num_tokens // KV_BLOCK :]
        while len(self.blocks) > -(-num_tokens // KV_BLOCK):
            self._cache.release(self.blocks.pop())
