"""The books of a pool of places, each of which is

free         nobody needs it
held         by one holder or more, which are counted
evictable    by none, but what is in it is known: kept until its memory is needed
"""

from collections import OrderedDict, deque
from collections.abc import Callable

from edgellm.errors import EdgeLLMError


class KVMemoryError(EdgeLLMError):
    """Sequences hold so much memory that there is not enough for another."""


class Pool:
    """Places 0..size-1, and who holds them. Holders are blind: who wrote what where is not known here."""

    def __init__(self, size: int, what: str) -> None:
        """`what` names the places in errors."""
        self.size = size
        self.on_evict: Callable[[int], None] = lambda place: None  # told of a place that was known, and is free now
        self.on_free: Callable[[int], None] = lambda place: None  # told of every place that is free now
        self._what = what
        self._free = deque(range(size))
        self._evictable: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._counts = [0] * size  # holders
        self._known: dict[int, int] = {}  # how many tokens of what is in a place are known

    @property
    def num_free(self) -> int:
        """Places that can be had without taking any from a holder: free and evictable."""
        return len(self._free) + len(self._evictable)

    @property
    def num_known(self) -> int:
        return len(self._known)

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
            self._counts[place] = 1
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
        if self._counts[place] == 0:
            del self._evictable[place]
        self._counts[place] += 1

    def release(self, place: int) -> None:
        """Give back one hold. The last one makes it evictable, as the most recently used, or free."""
        assert self._counts[place] > 0, place
        self._counts[place] -= 1
        if self._counts[place] == 0:
            if place in self._known:
                self._evictable[place] = None
            else:
                self._set_free(place)

    def remember(self, place: int, num_tokens: int) -> None:
        """The first `num_tokens` tokens in a held place are known."""
        assert self._counts[place] > 0, place
        self._known[place] = num_tokens

    def forget(self, place: int) -> None:
        """What is in the place is known no more."""
        del self._known[place]
        if self._counts[place] == 0:
            del self._evictable[place]
            self._set_free(place)

    def evict(self) -> bool:
        """Free the evictable place least recently used; False if there is none."""
        if not self._evictable:
            return False
        place = next(iter(self._evictable))
        self.forget(place)
        self.on_evict(place)
        return True

    def is_known(self, place: int) -> bool:
        return place in self._known

    def is_owned(self, place: int, num_tokens: int) -> bool:
        """Whether its only holder may write after its first `num_tokens` tokens: nobody else needs what is there."""
        return self._counts[place] == 1 and self._known.get(place, 0) <= num_tokens

    def check_integrity(self) -> None:
        """Every place is in one state: free, evictable, which are known and not held, or held."""
        held = {place for place, count in enumerate(self._counts) if count > 0}
        free, evictable, known = set(self._free), set(self._evictable), set(self._known)
        assert min(self._counts, default=0) >= 0, self._counts
        assert len(free) == len(self._free), self._free
        assert len(free) + len(evictable) + len(held) == self.size, (free, evictable, held)
        assert free | evictable | held == set(range(self.size)), (free, evictable, held)
        assert known - held == evictable, (known, held, evictable)

    def holds(self, place: int) -> int:
        """How many hold a place."""
        return self._counts[place]

    def _set_free(self, place: int) -> None:
        self._free.appendleft(place)  # the next to be reused, while its memory is still warm
        self.on_free(place)
