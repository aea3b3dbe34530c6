"""One text in the KV cache: its blocks, what of them its windows show, and its recurrent state."""

from collections.abc import Iterator

from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.kv import ZERO_SLOT, KVCache
from edgellm.memory.window import WindowBlocks


class Sequence:
    """The blocks of one text, in order: position p lies in blocks[p // KV_BLOCK].

    A step goes: `reserve` room, compute, `advance`; then `accept` says which of its rows happened. Its recurrent state
    is read from one slot and written to another, so that until the next `reserve` the one before it can be had again.
    """

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.blocks: list[int] = []
        self.length = 0  # tokens whose keys and values are in the cache
        self.block_hashes: list[bytes] = []  # of the first full blocks: those that are in the prefix cache
        self.slot = ZERO_SLOT  # the state after `length` tokens
        self.next_slot = ZERO_SLOT  # where a step leaves the state
        self._step_begin = 0  # the length before the last step
        self._slot_before: int | None = None  # the slot then; None before a step, and where there are no such states
        self._seen = [0] * len(cache.windows)  # of each window, the first block whose place is held

    def reserve(self, num_tokens: int, *, goes_on: bool = False) -> None:
        """Make room for `num_tokens` in all, before those after `length` are written. What `goes_on` is one step with
        the last: `rewind` can go back to before both.

        A last block that others need is replaced by a copy of it:

            length                  v
            blocks    [ 0..31 ][ 32..40, others' 41..63 ]
            becomes   [ 0..31 ][ 32..40, room          ][ room ]

        Errors: KVMemoryError, with nothing changed but that there may be a copy, and places may be given back that no
        window shows any more.
        """
        cache = self.cache
        if cache.is_plain and self._has_own_room(num_tokens):
            self._step_begin = self._step_begin if goes_on else self.length
            return
        if not goes_on:
            self._forget_step_before()
            self._leave_behind()
        self._own_last_block(num_tokens)
        missing = -(-num_tokens // KV_BLOCK) - len(self.blocks)
        needs_slot = cache.is_recurrent and self.next_slot == ZERO_SLOT
        cache.check_room(max(missing, 0))
        for first, window in self._windows():
            window.pool.check_room(max(len(self.blocks) + missing - max(first, len(self.blocks)), 0))
        if needs_slot:
            self.next_slot = cache.slots.allocate()
        if missing > 0:
            self.blocks += cache.allocate_many(missing)
            for first, window in self._windows():
                for block in self.blocks[max(first, len(self.blocks) - missing) :]:
                    window.attach(block)

    def demand(self, num_tokens: int) -> tuple[int, ...]:
        """Places that `reserve` needs, pool by pool as KVCache.free; a copied block may come free again after it."""
        cache = self.cache
        missing = max(-(-num_tokens // KV_BLOCK) - len(self.blocks), 0)
        index, used = divmod(self.length, KV_BLOCK)
        is_copied = used > 0 and num_tokens > self.length and not cache.is_owned(self.blocks[index], used)
        places = []
        for first, window in self._windows():
            left = self.blocks[first : window.first_seen(self.length)]
            freed = sum(window.pool.ref_count(window.place_of[block]) == 1 for block in left)
            places.append(missing + is_copied - freed)
        slots = cache.is_recurrent and (self.next_slot == ZERO_SLOT) - self._is_alone_in(self._slot_before)
        return (missing + is_copied, *places, slots)

    def held_alone(self) -> tuple[int, ...]:
        """How many places more can be had when it lets all go, pool by pool as KVCache.free."""
        blocks = sum(self.cache.ref_count(block) == 1 for block in self.blocks)
        places = (
            sum(window.pool.ref_count(window.place_of[block]) == 1 for block in self.blocks[first:])
            for first, window in self._windows()
        )
        return (blocks, *places, sum(map(self._is_alone_in, (self._slot_before, self.slot, self.next_slot))))

    def skip(self, num_tokens: int) -> None:
        """Of a fresh sequence: go on as if so many tokens had been computed, whatever is in their memory; what steps
        cost after them can be measured. Errors: KVMemoryError.
        """
        count = -(-num_tokens // KV_BLOCK)
        for window in self.cache.windows:
            window.pool.check_room(count - window.first_seen(num_tokens))
        self.blocks = self.cache.allocate_many(count)
        self.length = num_tokens
        for number, window in enumerate(self.cache.windows):
            self._seen[number] = window.first_seen(num_tokens)
            for block in self.blocks[self._seen[number] :]:
                window.attach(block)

    def advance(self, num_tokens: int) -> None:
        """A step has computed so many tokens."""
        self.length += num_tokens
        if not self.cache.is_recurrent:
            return
        if self._slot_before is None:
            self._slot_before = self.slot
        else:
            self.cache.slots.release(self.slot)
        self.slot = self.next_slot
        self.next_slot = ZERO_SLOT

    def has_room(self, num_tokens: int) -> bool:
        """Whether there is room for a step of so many tokens."""
        fits = self.length + num_tokens <= len(self.blocks) * KV_BLOCK
        return fits and (not self.cache.is_recurrent or self.next_slot != ZERO_SLOT)

    def accept(self, num_tokens: int) -> int:
        """Of the last step, the first so many tokens happened, the others never did. Returns as `rewind`."""
        return self.rewind(self._step_begin + num_tokens)

    def rewind(self, num_tokens: int) -> int:
        """Forget all but the first `num_tokens` tokens, and as many more as it takes to stand where every state can.

        Recurrent states go back to before the last step, or to the begin; a window to where all it shows is still
        there. Returns the length, whose following tokens are to be computed again. Last blocks go first, which makes
        them the first to be evicted.
        """
        assert num_tokens <= self.length, (num_tokens, self.length)
        if num_tokens < self.length:
            num_tokens = self._standing(num_tokens)
            self._restore_slot(num_tokens)
        self._truncate(num_tokens)
        return num_tokens

    def resume(self, num_tokens: int, slot: int = ZERO_SLOT) -> None:
        """Go on after the first `num_tokens` tokens, whose blocks were appended by the prefix cache; others go.

        `slot` is the state after them. The places of the blocks that the windows show must be there: `can_stand`.
        """
        self.length = num_tokens
        del self.block_hashes[num_tokens // KV_BLOCK :]
        while len(self.blocks) > -(-num_tokens // KV_BLOCK):
            self.cache.release(self.blocks.pop())
        for number, window in enumerate(self.cache.windows):
            self._seen[number] = window.first_seen(num_tokens)
            window.hold(self.blocks[self._seen[number] :])
        if slot != ZERO_SLOT:
            self.cache.slots.share(slot)
            self.slot = slot

    def take_over(self, index: int, block: int) -> None:
        """Hold another block instead of that at an index, which has the same bits."""
        ours, self.blocks[index] = self.blocks[index], block
        self.cache.share(block)
        for first, window in self._windows():
            if index < first:
                continue
            if window.has_all([block]):
                window.hold([block])
                window.release([ours])
            else:
                window.move(ours, block)
        self.cache.release(ours)

    def can_stand(self, num_tokens: int) -> bool:
        """Whether the windows show all of the appended blocks that they need after so many tokens."""
        end = -(-num_tokens // KV_BLOCK)
        return all(window.has_all(self.blocks[window.first_seen(num_tokens) : end]) for window in self.cache.windows)

    def tables(self, group: int) -> list[int]:
        """Where the blocks lie in a group's arena; what a window does not show is anywhere."""
        return self.blocks if group == 0 else [self.cache.windows[group - 1].place_of[block] for block in self.blocks]

    def _windows(self) -> Iterator[tuple[int, WindowBlocks]]:
        return zip(self._seen, self.cache.windows, strict=True)

    def _has_own_room(self, num_tokens: int) -> bool:
        """Whether the last block has room for all, and is nobody else's: so it is for most tokens."""
        index, used = divmod(self.length, KV_BLOCK)
        return used > 0 and num_tokens <= (index + 1) * KV_BLOCK and self.cache.is_owned(self.blocks[index], used)

    def _is_alone_in(self, slot: int | None) -> bool:
        return slot is not None and slot != ZERO_SLOT and self.cache.slots.ref_count(slot) == 1

    def _leave_behind(self) -> None:
        """Give back the places that no later token sees."""
        for number, (first, window) in enumerate(self._windows()):
            self._seen[number] = max(first, window.first_seen(self.length))
            window.release(self.blocks[first : self._seen[number]])

    def _own_last_block(self, num_tokens: int) -> None:
        index, used = divmod(self.length, KV_BLOCK)
        cache = self.cache
        if used == 0 or num_tokens <= self.length or cache.is_owned(self.blocks[index], used):
            return
        source = self.blocks[index]
        for _, window in self._windows():
            window.pool.check_room(1)
        self.blocks[index] = cache.allocate()
        for _, window in self._windows():
            window.attach(self.blocks[index])
        cache.copy_block(source, self.blocks[index])
        for _, window in self._windows():
            window.release([source])
        cache.release(source)  # at once: it may make room for the rest

    def _standing(self, num_tokens: int) -> int:
        """The most tokens, at most so many, after which every state can be had."""
        if any(first > window.first_seen(num_tokens) for first, window in self._windows()):
            return 0
        if not self.cache.is_recurrent:
            return num_tokens
        return self._step_begin if self._slot_before is not None and self._step_begin <= num_tokens else 0

    def _restore_slot(self, num_tokens: int) -> None:
        """Of the state before the last step, or before the first token."""
        if self.slot != ZERO_SLOT:
            self.cache.slots.release(self.slot)
        self.slot = ZERO_SLOT
        if self._slot_before is not None and num_tokens == self._step_begin:
            self.slot = self._slot_before
            self._slot_before = None

    def _truncate(self, num_tokens: int) -> None:
        self.length = num_tokens
        del self.block_hashes[num_tokens // KV_BLOCK :]
        kept = -(-num_tokens // KV_BLOCK)
        for number, (first, window) in enumerate(self._windows()):
            window.release(reversed(self.blocks[max(first, kept) :]))
            self._seen[number] = min(first, kept)
        while len(self.blocks) > kept:
            self.cache.release(self.blocks.pop())
        if num_tokens == 0:
            self._forget_step_before()
            if self.next_slot != ZERO_SLOT:
                self.cache.slots.release(self.next_slot)
                self.next_slot = ZERO_SLOT

    def _forget_step_before(self) -> None:
        if self._slot_before is not None and self._slot_before != ZERO_SLOT:
            self.cache.slots.release(self._slot_before)
        self._slot_before = None
        self._step_begin = self.length
