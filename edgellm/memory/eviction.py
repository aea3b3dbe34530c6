"""Eviction: who loses memory when somebody needs more than is free. This is the one place that chooses.

    who     what is cached and held by nobody: blocks of past texts, their places in windows, recurrent states. What a
            request holds is never evicted; the scheduler may preempt the request, which lets go of it first.
    when    when a place is allocated and none is free (Pool.allocate_many), or all is to be forgotten
            (PrefixCache.forget). Nothing is evicted ahead of need, and evicting none is always safe.
    order   what was let go of longest ago goes first. A sequence lets go of its last block first, so the end of a text
            goes before its beginning, and no block before one that follows it.
    told    `Pool.on_evict`: the tree of cached blocks, which remembers the hash to say why a later prompt missed, the
            places in windows, and the checkpoints of recurrent states; then `Pool.on_free`.

What is on disk has a budget of its own: whole segments go, the least recently used first (disk/appender.py).
"""

from collections import OrderedDict


class EvictionOrder:
    """The places of a pool that may be evicted, in the order in which they would be."""

    def __init__(self) -> None:
        self._places: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    def places(self) -> list[int]:
        """All of them, the next to go first."""
        return list(self._places)

    def add(self, place: int) -> None:
        """Nobody holds a cached place any more: it goes after all others."""
        self._places[place] = None

    def remove(self, place: int) -> None:
        """Somebody holds it again, or it is forgotten."""
        del self._places[place]

    def first(self) -> int | None:
        """The place that goes next; None where there is nothing to evict."""
        return next(iter(self._places), None)
