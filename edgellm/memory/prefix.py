"""The prefix cache: no text is computed twice that begins like one before, not even after a restart.

    match_prefix    the blocks that the tokens begin with: shared from memory, copied from disk; of the last one a part
    cache_blocks    blocks that became full are cached, and queued for the disk: requests in flight share them
    cache_tokens    the last one is cached too, full or not: those in flight share a prompt to its end
    free            and it is queued for the disk; all of them are let go, and kept while there is room (eviction.py)

A shared block is copied by whoever writes into it what others do not have: Sequence.reserve.

A text resumes at the longest place where all of its states can stand: the blocks that windows show are there, and the
recurrent states were kept. They are kept at the end of what a sequence holds when it is shared or ends, and every
`StateLayout.state_interval` tokens.

The caller sees to it that one call runs at a time, and none during a step.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.checkpoints import Checkpoints
from edgellm.memory.disk.record import HASH_BYTES, Data
from edgellm.memory.disk.store import BlockStore
from edgellm.memory.kv import ZERO_SLOT, KVCache
from edgellm.memory.sequence import Sequence
from edgellm.memory.tree import BlockTree, Match, Node, closest, hash_block, states_after

PREPARED = 64 << 20  # bytes of memory, at most, that wait for what may be read from the disk


Reason = Literal["hit", "never seen", "differs", "model changed", "evicted", "no state", "not read"]


@dataclass(frozen=True)
class CacheReport:
    """How much of a prompt need not be computed, and why not more.

    hit              all but the last token, which is computed for its logits
    evicted          the next tokens were known, and had to make room or find none
    model changed    they are known, but of another model file or KV format
    differs          what is known goes on with another token
    never seen       nothing is known after these tokens
    no state         the next tokens are known, but there is no recurrent state, or no window, to go on from
    not read         all of it is computed, since the logits of all tokens are wanted

    The names of blocks tell what was evicted or is another model's, so of a block that the prompt ends within, both
    are "never seen" or "differs".
    """

    from_memory: int  # tokens
    from_disk: int  # tokens
    reason: Reason
    differs_at: int | None = None  # index of the first token that differs
    expected: int | None = None  # token that was cached there

    @property
    def num_cached_tokens(self) -> int:
        return self.from_memory + self.from_disk


class PrefixCache:
    """What is known of one model's texts, in a KV cache that it shares with those at work."""

    def __init__(self, cache: KVCache, *, model: bytes, store: BlockStore | None = None) -> None:
        """`model` is the fingerprint of the model file and the KV format; `store` holds blocks of the same model."""
        assert len(model) == HASH_BYTES, len(model)
        self._cache = cache
        self._store = store
        self._tree = BlockTree(model)
        self._checkpoints = Checkpoints(cache.slots)
        # Whether blocks came from the disk. It starts true: the first prompt is the likeliest to resume an earlier run
        self._has_read = True
        self._prepare()
        cache.on_evict = self._tree.evict

    def match_prefix(self, tokens: Seq[int], *, reads: bool = True) -> tuple[Sequence, CacheReport]:
        """A sequence that holds the longest known beginning of a prompt, not its last token; less if memory is short.

        The caller computes tokens[sequence.length:], which are all of them where nothing is to be read.
        """
        assert len(tokens) > 0
        sequence = Sequence(self._cache)
        if not reads:
            return sequence, CacheReport(0, 0, "not read")
        self._append_known(sequence, tokens)
        from_memory = sequence.length
        if self._store is not None:
            self._append_stored(self._store, sequence, tokens)
        from_disk = sequence.length - from_memory
        node = self._last(sequence)
        rest = self._rest(sequence, tokens)
        known = self._closest(node, rest)
        if known is not None:
            in_memory = known.block_hash in node.children
            used = self._use_part(sequence, known, min(known.count, len(tokens) - 1 - sequence.length))
            from_memory = from_memory + used * in_memory
            from_disk = from_disk + used * (not in_memory)
        known_tokens = sequence.length
        self._resume(sequence, tokens)
        from_memory = min(from_memory, sequence.length)
        from_disk = min(from_disk, sequence.length - from_memory)
        if sequence.length == len(tokens) - 1:
            return sequence, CacheReport(from_memory, from_disk, "hit")
        if sequence.length < known_tokens:
            return sequence, CacheReport(from_memory, from_disk, "no state")
        start = len(sequence.block_hashes) * KV_BLOCK
        reason = self._reason(node, rest, known, sequence.length - start)
        if reason != "differs":
            return sequence, CacheReport(from_memory, from_disk, reason)
        assert known is not None
        return sequence, CacheReport(from_memory, from_disk, reason, start + known.count, known.tokens[known.count])

    def cache_blocks(self, sequence: Sequence, tokens: Seq[int]) -> None:
        """Know the blocks that became full, and a state every `state_interval` tokens. `tokens` are all that the
        sequence holds.

        If another sequence was faster, ours takes over its block, which has the same bits.
        """
        assert len(tokens) == sequence.length, (len(tokens), sequence.length)
        while len(sequence.block_hashes) < sequence.length // KV_BLOCK:
            index = len(sequence.block_hashes)
            parent = self._last(sequence)
            part = self._rest(sequence, tokens)
            block = sequence.blocks[index]
            node = self._tree.find(parent, hash_block(parent.block_hash, part))
            if node is None:
                node = self._add(parent, part, block)
                self._put(node)
            elif node.block != block:
                sequence.take_over(index, node.block)
            sequence.block_hashes.append(node.block_hash)
        if sequence.length % self._cache.layout.state_interval == 0:
            self._keep_state(sequence, tokens)

    def cache_tokens(self, sequence: Sequence, tokens: Seq[int], *, keeps_state: bool = True) -> Node | None:
        """Know all that the sequence holds, which may go on; the node of its last block if that is not full.

        `tokens` are as for `cache_blocks`; `keeps_state`: its state too, wherever it is.
        """
        self.cache_blocks(sequence, tokens)
        if keeps_state:
            self._keep_state(sequence, tokens)
        parent = self._last(sequence)
        part = self._rest(sequence, tokens)
        if not part:
            return None
        known = (child for child in parent.children.values() if child.tokens[: len(part)] == part)
        return next(known, None) or self._add(parent, part, sequence.blocks[len(sequence.block_hashes)])

    def free(self, sequence: Sequence, tokens: Seq[int]) -> None:
        """Know all that the sequence holds, and let it go. `tokens` are as for `cache_blocks`."""
        last = self.cache_tokens(sequence, tokens)
        for name in sequence.block_hashes:
            self._put(self._tree[name])  # once more: when it became full, the queue may have been
        if last is not None:
            self._put(last)
        sequence.rewind(0)
        self._prepare()

    def forget(self) -> None:
        """Free all memory that no sequence holds. What is on disk stays."""
        while self._cache.evict() or self._cache.slots.evict():
            pass

    def check_integrity(self) -> None:
        """The books of the cache and those about its contents balance."""
        self._cache.check_integrity()
        self._tree.check_integrity()
        self._checkpoints.check_integrity()
        assert self._cache.num_cached == len(self._tree), (self._cache.num_cached, len(self._tree))

    def _prepare(self) -> None:
        """Memory for what may be read from the disk, while nobody waits for it."""
        if self._store is not None and self._has_read:
            self._cache.prepare(min(self._store.num_blocks, PREPARED // max(self._cache.layout.block_bytes, 1)))
        self._has_read = False

    def _last(self, sequence: Sequence) -> Node:
        """The last full block of a sequence that is known: it is held, so it stays."""
        return self._tree[sequence.block_hashes[-1]] if sequence.block_hashes else self._tree.root

    def _rest(self, sequence: Sequence, tokens: Seq[int]) -> tuple[int, ...]:
        """The tokens of the block after that, as far as there are any."""
        start = len(sequence.block_hashes) * KV_BLOCK
        return tuple(tokens[start : start + KV_BLOCK])

    def _append(self, sequence: Sequence, node: Node) -> None:
        sequence.blocks.append(node.block)
        sequence.block_hashes.append(node.block_hash)
        sequence.length += KV_BLOCK

    def _append_known(self, sequence: Sequence, tokens: Seq[int]) -> None:
        """Append the full blocks that are in memory."""
        while sequence.length + KV_BLOCK < len(tokens):
            parent = self._last(sequence)
            node = self._tree.find(parent, hash_block(parent.block_hash, self._rest(sequence, tokens)))
            if node is None:
                break
            self._cache.share(node.block)
            self._append(sequence, node)

    def _append_stored(self, store: BlockStore, sequence: Sequence, tokens: Seq[int]) -> None:
        """Append the full blocks that are on disk, as far as there is memory for them."""
        names = []
        name = self._last(sequence).block_hash
        for start in range(sequence.length, len(tokens) - KV_BLOCK, KV_BLOCK)[: self._cache.num_free]:
            name = hash_block(name, tokens[start : start + KV_BLOCK])
            names.append(name)
        for stored in store.get_many(names):
            block = self._new_block(stored.data)
            self._append(sequence, self._add(self._last(sequence), self._rest(sequence, tokens), block))
            self._has_read = True

    def _closest(self, node: Node, rest: tuple[int, ...]) -> Match | None:
        """The known block after a node that agrees longest with rest: in memory, the last used first, or on disk."""
        best = closest([(child.block_hash, child.tokens) for child in node.children.values()], rest)
        if self._store is None or (best is not None and best.count == len(rest)):
            return best
        stored = closest(self._store.children(node.block_hash), rest)
        return stored if best is None or (stored is not None and stored.count > best.count) else best

    def _use_part(self, sequence: Sequence, known: Match, count: int) -> int:
        """Append a block of which the first `count` tokens count; 0 if there is nothing to be had."""
        if count == 0:
            return 0
        node = self._tree.find(self._last(sequence), known.block_hash)
        block = self._hold(node.block, count) if node is not None else self._copy_from_disk(known.block_hash)
        if block is None:
            return 0
        sequence.blocks.append(block)
        sequence.length += count
        return count

    def _hold(self, block: int, count: int) -> int | None:
        """A known block, held once more; None if writing after `count` tokens needs a copy, and there is no memory."""
        self._cache.share(block)
        if self._cache.num_free or self._cache.is_owned(block, count):
            return block
        self._cache.release(block)
        return None

    def _copy_from_disk(self, name: bytes) -> int | None:
        """A fresh block like one on disk; None if there is no memory, or the stored one has gone."""
        stored = self._store.get(name) if self._store is not None and self._cache.num_free else None
        if stored is None:
            return None
        return self._new_block(stored.data)

    def _new_block(self, data: Data) -> int:
        """A block from the disk, with places in the windows as far as there is memory for them."""
        block = self._cache.allocate()
        windows = [window for window in self._cache.windows if window.pool.num_free]
        for window in windows:
            window.attach(block)
        self._cache.write_block(block, np.frombuffer(data, np.uint8))
        for window in windows:
            window.release([block])
        return block

    def _resume(self, sequence: Sequence, tokens: Seq[int]) -> None:
        """Let a sequence stand at the longest place of what was appended to it where all of its states can."""
        known = sequence.length
        if not self._cache.is_recurrent:
            places = (known, *range(known // KV_BLOCK * KV_BLOCK, 0, -KV_BLOCK))
            sequence.resume(next((place for place in places if self._can_go_on(sequence, place)), 0))
            return
        for index in range((known - 1) // KV_BLOCK, -1, -1):
            start = index * KV_BLOCK
            parent = self._tree[sequence.block_hashes[index - 1]] if index else self._tree.root
            found = self._find_state(parent, tokens[start : min(start + KV_BLOCK, known)])
            if found is not None and self._can_go_on(sequence, start + found[0]):
                sequence.resume(start + found[0], found[1])
                return
        sequence.resume(0)

    def _can_go_on(self, sequence: Sequence, num_tokens: int) -> bool:
        """Whether it can stand there and go on: where others need the rest of a block, writing takes a copy."""
        index, used = divmod(num_tokens, KV_BLOCK)
        has_room = used == 0 or self._cache.num_free > 0 or self._cache.is_owned(sequence.blocks[index], used)
        return has_room and sequence.can_stand(num_tokens)

    def _find_state(self, parent: Node, rest: Seq[int]) -> tuple[int, int] | None:
        """The kept state of a text that goes on after a block as `rest` does: how many tokens of it, and the slot."""
        found = self._checkpoints.find(parent.block_hash, rest)
        if self._store is None or (found is not None and found[0] == len(rest)):
            return found
        stored = [tokens for _, tokens in self._store.children(states_after(parent.block_hash))]
        fitting = (tokens for tokens in stored if tokens == tuple(rest[: len(tokens)]))
        longest = max(fitting, key=len, default=())
        if len(longest) <= (found[0] if found is not None else 0) or not self._cache.slots.num_free:
            return found
        block = self._store.get(hash_block(states_after(parent.block_hash), longest))
        if block is None:
            return found
        slot = self._cache.slots.allocate()
        self._cache.store.write_slot(slot, block.data)
        self._checkpoints.add(parent.block_hash, longest, slot)
        self._cache.slots.release(slot)  # kept, and held again by who resumes with it
        return len(longest), slot

    def _keep_state(self, sequence: Sequence, tokens: Seq[int]) -> None:
        if not self._cache.is_recurrent or sequence.slot == ZERO_SLOT:
            return
        start = (sequence.length - 1) // KV_BLOCK * KV_BLOCK
        parent = self._tree[sequence.block_hashes[start // KV_BLOCK - 1]] if start else self._tree.root
        rest = tuple(tokens[start : sequence.length])
        if self._checkpoints.add(parent.block_hash, rest, sequence.slot) and self._store is not None:
            before = states_after(parent.block_hash)
            data = self._cache.store.read_slot(sequence.slot)
            text = hash_block(states_after(parent.text_hash), rest)
            self._store.put(hash_block(before, rest), before, rest, data, text)

    def _reason(self, node: Node, rest: tuple[int, ...], known: Match | None, used: int) -> Reason:
        """Why only `used` tokens of rest, which follow node, are cached."""
        agreed = known.count if known is not None else 0
        if agreed > used:
            return "evicted"
        ends = range(agreed + 1, len(rest) + 1)
        names = [hash_block(node.block_hash, rest[:end]) for end in ends]
        if any(map(self._tree.was_evicted, names)):
            return "evicted"
        if self._store is not None:
            if any(map(self._store.was_evicted, names)):
                return "evicted"
            if any(self._store.seen_with_other_model(hash_block(node.text_hash, rest[:end])) for end in ends):
                return "model changed"
        return "differs" if known is not None and agreed < min(len(known.tokens), len(rest)) else "never seen"

    def _add(self, parent: Node, tokens: tuple[int, ...], block: int) -> Node:
        """Know a held block."""
        for shorter in self._tree.shorter(parent, tokens):
            self._tree.remove(shorter.block)
            self._cache.uncache(shorter.block)
        self._cache.mark_cached(block, len(tokens))
        return self._tree.add(parent, tokens, block)

    def _put(self, node: Node) -> None:
        if self._store is not None:
            assert node.parent is not None
            data = self._cache.read_block(node.block)
            if data is not None:
                self._store.put(node.block_hash, node.parent.block_hash, node.tokens, data, node.text_hash)
