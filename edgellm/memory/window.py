"""Keys and values in a sliding window: memory for those blocks alone that somebody may still see.

A block of a text has a place here from when it is written. Who computes the text holds the places of the blocks in its
window; the others stay, for texts that resume there, until their memory is needed.
"""

from collections.abc import Iterable

from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.pool import Pool

NOWHERE = -1


class WindowBlocks:
    """The places of one group of layers."""

    def __init__(self, window: int, num_blocks: int, num_places: int) -> None:
        self.window = window
        self.pool = Pool(num_places, f"blocks of {KV_BLOCK} tokens in windows")
        self.pool.on_evict = self._lose
        self.place_of = [NOWHERE] * num_blocks
        self._block_of = [NOWHERE] * num_places

    def first_seen(self, length: int) -> int:
        """The first block that the token after `length` tokens sees, or one after it."""
        return max(0, length - self.window + 1) // KV_BLOCK

    def attach(self, block: int) -> int:
        """A place for a block, held once. Errors: KVMemoryError."""
        assert self.place_of[block] == NOWHERE, block
        place = self.pool.allocate()
        self.pool.mark_cached(place, KV_BLOCK)
        self.place_of[block], self._block_of[place] = place, block
        return place

    def detach(self, block: int) -> None:
        """The block is nobody's any more."""
        place = self.place_of[block]
        if place != NOWHERE:
            self._lose(place)
            self.pool.uncache(place)

    def has_all(self, blocks: Iterable[int]) -> bool:
        return all(self.place_of[block] != NOWHERE for block in blocks)

    def hold(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self.pool.share(self.place_of[block])

    def release(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self.pool.release(self.place_of[block])

    def move(self, source: int, target: int) -> None:
        """The place of a block becomes that of another, which has none and holds the same."""
        assert self.place_of[target] == NOWHERE, target
        place = self.place_of[source]
        self.place_of[source], self.place_of[target], self._block_of[place] = NOWHERE, place, target

    def check_integrity(self) -> None:
        """Both books agree, and no place is held or known that no block has."""
        self.pool.check_integrity()
        attached = {place: block for block, place in enumerate(self.place_of) if place != NOWHERE}
        assert attached == {place: block for place, block in enumerate(self._block_of) if block != NOWHERE}
        assert all(self.pool.is_cached(place) for place in attached), attached
        assert self.pool.num_cached == len(attached), (self.pool.num_cached, attached)

    def _lose(self, place: int) -> None:
        self.place_of[self._block_of[place]] = self._block_of[place] = NOWHERE
