"""The books of a pool of places, each of which is

free         nobody needs it
held         by one holder or more, which are counted
evictable    held by none, but what is in it is cached: kept until its memory is needed (eviction.py)
"""

from collections import deque
from collections.abc import Callable

from edgellm.errors import KVMemoryError
from edgellm.memory.eviction import EvictionOrder


class Pool:
    """Places 0..size-1, and who holds them. Holders are blind: who wrote what where is not known here."""

    def __init__(self, size: int, what: str) -> None:
        """`what` names the places in errors."""
        self.size = size
        self.on_evict: Callable[[int], None] = lambda place: None  # told of a place that was cached, and is free now
        self.on_free: Callable[[int], None] = lambda place: None  # told of every place that is free now
        self._what = what
        self._free = deque(range(size))
        self._evictable = EvictionOrder()
        self._ref_counts = [0] * size  # holders
        self._cached: dict[int, int] = {}  # how many tokens of what is in a place are cached

    @property
    def num_free(self) -> int:
        """Places that can be had without taking any from a holder: free and evictable."""
        return len(self._free) + len(self._evictable)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    def allocate(self) -> int:
        """A place, held once: a free one, or else the evictable one least recently used. Errors: KVMemoryError."""
        return self.allocate_many(1)[0]

    def allocate_many(self, count: int) -> list[int]:
        """All of `count` places or none. Errors: KVMemoryError."""
        self.check_room(count)
        while len(self._free) < count:
            self.evict()
        places = [self._free.popleft() for _ in range(count)]
        for place in places:
            self._ref_counts[place] = 1
        return places

    def check_room(self, count: int) -> None:
        """Errors: KVMemoryError where `count` places cannot be had."""
        if count > self.num_free:
            raise KVMemoryError(
                f"{count} {self._what} are needed, {self.num_free} of {self.size} are free; "
                "end a request, or load the model with more kv_memory"
            )

    def share(self, place: int) -> None:
        """Hold a place that is held or evictable once more."""
        if self._ref_counts[place] == 0:
            self._evictable.remove(place)
        self._ref_counts[place] += 1

    def release(self, place: int) -> None:
        """Give back one hold. The last one makes it evictable, as the most recently used, or free."""
        assert self._ref_counts[place] > 0, place
        self._ref_counts[place] -= 1
        if self._ref_counts[place] == 0:
            if place in self._cached:
                self._evictable.add(place)
            else:
                self._set_free(place)

    def mark_cached(self, place: int, num_tokens: int) -> None:
        """The first `num_tokens` tokens in a held place are cached: they stay when nobody holds it any more."""
        assert self._ref_counts[place] > 0, place
        self._cached[place] = num_tokens

    def uncache(self, place: int) -> None:
        """What is in the place is not cached any more."""
        del self._cached[place]
        if self._ref_counts[place] == 0:
            self._evictable.remove(place)
            self._set_free(place)

    def evict(self) -> bool:
        """Free the place that goes next (eviction.py); False if there is none."""
        place = self._evictable.first()
        if place is None:
            return False
        self.uncache(place)
        self.on_evict(place)
        return True

    def is_cached(self, place: int) -> bool:
        return place in self._cached

    def is_owned(self, place: int, num_tokens: int) -> bool:
        """Whether its only holder may write after its first `num_tokens` tokens: nobody else needs what is there."""
        return self._ref_counts[place] == 1 and self._cached.get(place, 0) <= num_tokens

    def check_integrity(self) -> None:
        """Every place is in one state: free, evictable, which are cached and not held, or held."""
        held = {place for place, count in enumerate(self._ref_counts) if count > 0}
        free = set(self._free)
        evictable = set(self._evictable.places())
        cached = set(self._cached)
        assert min(self._ref_counts, default=0) >= 0, self._ref_counts
        assert len(free) == len(self._free), self._free
        assert len(free) + len(evictable) + len(held) == self.size, (free, evictable, held)
        assert free | evictable | held == set(range(self.size)), (free, evictable, held)
        assert cached - held == evictable, (cached, held, evictable)

    def ref_count(self, place: int) -> int:
        """How many hold a place."""
        return self._ref_counts[place]

    def _set_free(self, place: int) -> None:
        self._free.appendleft(place)  # the next to be reused, while its memory is still warm
        self.on_free(place)
