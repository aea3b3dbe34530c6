"""The KV cache: what models remember of texts, in blocks and slots, and the books about them.

A text is a list of *blocks* of KV_BLOCK tokens. A block's keys and values of all tokens lie at its number in group 0;
those in a sliding window at a place of their own, as long as somebody may see them (window.py); recurrent states in
slots, each the state after so many tokens (sequence.py).
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.layout import StateLayout
from edgellm.memory.pool import Pool
from edgellm.memory.store import HostStore, StateStore
from edgellm.memory.window import NOWHERE, WindowBlocks

ZERO_SLOT = 0  # the state before the first token, all zeros


class KVCache(Pool):
    """The blocks, which are the places of this pool, with what belongs to them."""

    def __init__(
        self, layout: StateLayout, num_blocks: int, *, num_places: Seq[int] | None = None,
        num_slots: int | None = None, make_store: Callable[..., StateStore] = HostStore,
    ) -> None:  # fmt: skip
        """`num_places` of each window, of which there need be fewer than blocks, and `num_slots` of recurrent states.

        None: as many as blocks. `make_store` gives the memory.
        """
        super().__init__(num_blocks, f"KV blocks of {KV_BLOCK} tokens")
        self.layout = layout
        self.num_blocks = num_blocks
        places = list(num_places or [num_blocks] * len(layout.windows))
        self.windows = [
            WindowBlocks(group.window or 0, num_blocks, size)
            for group, size in zip(layout.windows, places, strict=True)
        ]
        self.slots = Pool(0 if layout.slots is None else 1 + (num_slots or num_blocks), "slots of recurrent states")
        if layout.slots is not None:
            assert self.slots.allocate() == ZERO_SLOT  # for good
        self.is_plain = not layout.windows and layout.slots is None  # blocks are all that there is
        self.store = make_store(layout, [num_blocks, *places], self.slots.size)
        self.on_free = self._detach

    @property
    def is_recurrent(self) -> bool:
        return self.layout.slots is not None

    @property
    def free(self) -> tuple[int, ...]:
        """Places that can be had, pool by pool: blocks, those of each window, slots."""
        if self.is_plain:
            return self.num_free, 0
        return (self.num_free, *[window.pool.num_free for window in self.windows], self.slots.num_free)

    def has_block(self, block: int, group: int) -> bool:
        """Whether a block is there in a group."""
        return group == 0 or self.windows[group - 1].has_all([block])

    def block_view(self, block: int, group: int = 0) -> NDArray[np.uint8]:
        """A block in a group, uint8 [BlockLayout.nbytes], to be read."""
        return self.store.read(group, self._place(block, group))

    def copy_block(self, source: int, target: int) -> None:
        """In all groups; both must be there."""
        for group in range(len(self.layout.groups)):
            self.store.copy(group, self._place(source, group), self._place(target, group))

    def read_block(self, block: int) -> NDArray[np.uint8] | None:
        """A block of all groups, uint8 [StateLayout.block_bytes], to be kept elsewhere; None where a part is gone."""
        groups = range(len(self.layout.groups))
        if not all(self.has_block(block, group) for group in groups):
            return None
        if not self.windows:
            return self.block_view(block)
        return np.concatenate([self.block_view(block, group) for group in groups])

    def write_block(self, block: int, data: NDArray[np.uint8]) -> None:
        """What `read_block` gave, to a block in those groups in which it is there."""
        begin = 0
        for group, layout in enumerate(self.layout.groups):
            if self.has_block(block, group):
                self.store.write(group, self._place(block, group), data[begin : begin + layout.nbytes])
            begin += layout.nbytes

    def prepare(self, num_blocks: int) -> None:
        """The next free blocks will be written soon."""
        self.store.prepare(islice(self._free, num_blocks))

    def check_integrity(self) -> None:
        """The books of all pools balance, and what is free has no place in a window."""
        super().check_integrity()
        for window in self.windows:
            window.check_integrity()
            assert not any(window.place_of[block] != NOWHERE for block in self._free), "a free block has a place"
        self.slots.check_integrity()
        if self.is_recurrent:
            assert self.slots.ref_count(ZERO_SLOT) >= 1 and not self.store.read_slot(ZERO_SLOT).any()

    def check_nothing_is_held(self) -> None:
        """No sequence holds a block, a place in a window, or a slot."""
        for pool in (self, *(window.pool for window in self.windows)):
            assert pool.num_free == pool.size, [place for place in range(pool.size) if pool.ref_count(place)]
        assert self.slots.num_free == self.slots.size - self.is_recurrent

    def _place(self, block: int, group: int) -> int:
        place = block if group == 0 else self.windows[group - 1].place_of[block]
        assert place != NOWHERE, (block, group)
        return place

    def _detach(self, block: int) -> None:
        for window in self.windows:
            window.detach(block)
