"""Recurrent states of texts, kept so that texts that begin alike can resume there: a slot for a text up to a token.

A text up to a token is named by the block that its last full blocks end with, and the tokens after that, 1 to KV_BLOCK.
"""

from collections.abc import Sequence as Seq

from edgellm.memory.pool import Pool

Tokens = tuple[int, ...]


class Checkpoints:
    """What is in slots that nobody computes with. They stay until their memory is needed, least recently used first."""

    def __init__(self, slots: Pool) -> None:
        self._slots = slots
        self._by_parent: dict[bytes, dict[Tokens, int]] = {}  # name of a block -> tokens after it -> slot
        self._by_slot: dict[int, tuple[bytes, Tokens]] = {}
        slots.on_evict = self._lose

    def __len__(self) -> int:
        return len(self._by_slot)

    def add(self, parent: bytes, tokens: Tokens, slot: int) -> bool:
        """Keep a held slot, unless there is one for the text already; whether it is new."""
        if tokens in self._by_parent.get(parent, {}) or slot in self._by_slot:
            return False
        self._by_parent.setdefault(parent, {})[tokens] = slot
        self._by_slot[slot] = parent, tokens
        self._slots.mark_cached(slot, 0)
        return True

    def find(self, parent: bytes, rest: Seq[int]) -> tuple[int, int] | None:
        """Of texts that go on after a block as `rest` begins, the longest: (its tokens after the block, slot)."""
        known = self._by_parent.get(parent, {})
        fitting = ((len(tokens), slot) for tokens, slot in known.items() if tokens == tuple(rest[: len(tokens)]))
        return max(fitting, default=None)

    def check_integrity(self) -> None:
        """Both books hold the same, and the slots are known as kept."""
        entries = {
            (parent, tokens): slot for parent, known in self._by_parent.items() for tokens, slot in known.items()
        }
        assert entries == {text: slot for slot, text in self._by_slot.items()}
        assert all(self._by_parent.values()), "a block without states is remembered"
        assert all(map(self._slots.is_cached, self._by_slot)), self._by_slot
        assert self._slots.num_cached == len(self._by_slot), (self._slots.num_cached, len(self._by_slot))

    def _lose(self, slot: int) -> None:
        parent, tokens = self._by_slot.pop(slot)
        known = self._by_parent[parent]
        del known[tokens]
        if not known:
            del self._by_parent[parent]
