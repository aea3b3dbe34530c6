"""The prefix cache: no text is computed twice that begins like one before, not even after a restart.

    begin     the blocks that the tokens begin with: shared from memory, copied from disk; of the last one a part
    commit    blocks that are full are known, and queued for the disk: requests in flight share them
    share     the last one is known too, full or not: those in flight share a prompt to its end
    end       and it is queued for the disk; all of them are let go, and kept while there is room

A shared block is copied by whoever writes into it what others do not have: Sequence.reserve.

The caller sees to it that one call runs at a time, and none during a step.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Literal

from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.disk.record import HASH_BYTES
from edgellm.memory.disk.store import BlockStore
from edgellm.memory.kv import KVCache, Sequence
from edgellm.memory.tree import BlockTree, Match, Node, closest, digest

PREPARED = 64 << 20  # bytes of memory, at most, that wait for what may be read from the disk

Reason = Literal["hit", "never seen", "differs", "model changed", "evicted", "not read"]


@dataclass(frozen=True)
class CacheReport:
    """How much of a prompt need not be computed, and why not more.

    hit              all but the last token, which is computed for its logits
    evicted          the next tokens were known, and had to make room or find none
    model changed    they are known, but of another model file or KV format
    differs          what is known goes on with another token
    never seen       nothing is known behind these tokens
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
        """`model` HASH_BYTES that name the model file and the KV format; `store` holds blocks of the same model."""
        assert len(model) == HASH_BYTES, len(model)
        self._cache = cache
        self._store = store
        self._tree = BlockTree(model)
        # From the disk. Before the first text it counts as if: that begins as one before the restart, if any does
        self._has_read = True
        self._prepare()
        cache.on_evict = self._tree.evict

    def begin(self, tokens: Seq[int], *, reads: bool = True) -> tuple[Sequence, CacheReport]:
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
        node, rest = self._last(sequence), self._rest(sequence, tokens)
        known = self._closest(node, rest)
        if known is not None:
            in_memory = known.name in node.children
            used = self._use_part(sequence, known, min(known.count, len(tokens) - 1 - sequence.length))
            from_memory, from_disk = from_memory + used * in_memory, from_disk + used * (not in_memory)
        if sequence.length == len(tokens) - 1:
            return sequence, CacheReport(from_memory, from_disk, "hit")
        start = len(sequence.names) * KV_BLOCK
        reason = self._reason(node, rest, known, sequence.length - start)
        if reason != "differs":
            return sequence, CacheReport(from_memory, from_disk, reason)
        assert known is not None
        return sequence, CacheReport(from_memory, from_disk, reason, start + known.count, known.tokens[known.count])

    def commit(self, sequence: Sequence, tokens: Seq[int]) -> None:
        """Know the blocks that became full. `tokens` are all that the sequence holds.

        If another sequence was faster, ours takes over its block, which has the same bits.
        """
        assert len(tokens) == sequence.length, (len(tokens), sequence.length)
        while len(sequence.names) < sequence.length // KV_BLOCK:
            index, parent, part = len(sequence.names), self._last(sequence), self._rest(sequence, tokens)
            block = sequence.blocks[index]
            node = self._tree.find(parent, digest(parent.name, part))
            if node is None:
                node = self._add(parent, part, block)
                self._put(node)
            elif node.block != block:
                self._cache.share(node.block)
                self._cache.release(block)
                sequence.blocks[index] = node.block
            sequence.names.append(node.name)

    def share(self, sequence: Sequence, tokens: Seq[int]) -> Node | None:
        """Know all that the sequence holds, which may go on; the node of its last block if that is not full.

        `tokens` are as for `commit`.
        """
        self.commit(sequence, tokens)
        parent, part = self._last(sequence), self._rest(sequence, tokens)
        if not part:
            return None
        known = (child for child in parent.children.values() if child.tokens[: len(part)] == part)
        return next(known, None) or self._add(parent, part, sequence.blocks[len(sequence.names)])

    def end(self, sequence: Sequence, tokens: Seq[int]) -> None:
        """Know all that the sequence holds, and let it go. `tokens` are as for `commit`."""
        last = self.share(sequence, tokens)
        for name in sequence.names:
            self._put(self._tree[name])  # once more: when it became full, the queue may have been
        if last is not None:
            self._put(last)
        sequence.truncate(0)
        self._prepare()

    def forget(self) -> None:
        """Free all memory that no sequence holds. What is on disk stays."""
        while self._cache.evict():
            pass

    def check_integrity(self) -> None:
        """The books of the cache and those about its contents balance."""
        self._cache.check_integrity()
        self._tree.check_integrity()
        assert self._cache.num_known == len(self._tree), (self._cache.num_known, len(self._tree))

    def _prepare(self) -> None:
        """Memory for what may be read from the disk, while nobody waits for it."""
        if self._store is not None and self._has_read:
            self._cache.prepare(min(self._store.num_blocks, PREPARED // self._cache.layout.block_bytes))
        self._has_read = False

    def _last(self, sequence: Sequence) -> Node:
        """The last full block of a sequence that is known: it is held, so it stays."""
        return self._tree[sequence.names[-1]] if sequence.names else self._tree.root

    def _rest(self, sequence: Sequence, tokens: Seq[int]) -> tuple[int, ...]:
        """The tokens of the block behind that, as far as there are any."""
        start = len(sequence.names) * KV_BLOCK
        return tuple(tokens[start : start + KV_BLOCK])

    def _append(self, sequence: Sequence, node: Node) -> None:
        sequence.blocks.append(node.block)
        sequence.names.append(node.name)
        sequence.length += KV_BLOCK

    def _append_known(self, sequence: Sequence, tokens: Seq[int]) -> None:
        """Append the full blocks that are in memory."""
        while sequence.length + KV_BLOCK < len(tokens):
            parent = self._last(sequence)
            node = self._tree.find(parent, digest(parent.name, self._rest(sequence, tokens)))
            if node is None:
                break
            self._cache.share(node.block)
            self._append(sequence, node)

    def _append_stored(self, store: BlockStore, sequence: Sequence, tokens: Seq[int]) -> None:
        """Append the full blocks that are on disk, as far as there is memory for them."""
        names, name = [], self._last(sequence).name
        for start in range(sequence.length, len(tokens) - KV_BLOCK, KV_BLOCK)[: self._cache.num_free]:
            name = digest(name, tokens[start : start + KV_BLOCK])
            names.append(name)
        for stored in store.get_many(names):
            block = self._cache.allocate()
            self._cache.block_view(block)[:] = stored.data
            self._append(sequence, self._add(self._last(sequence), self._rest(sequence, tokens), block))
            self._has_read = True

    def _closest(self, node: Node, rest: tuple[int, ...]) -> Match | None:
        """The known block behind a node that agrees longest with rest: in memory, the last used first, or on disk."""
        best = closest([(child.name, child.tokens) for child in node.children.values()], rest)
        if self._store is None or (best is not None and best.count == len(rest)):
            return best
        stored = closest(self._store.children(node.name), rest)
        return stored if best is None or (stored is not None and stored.count > best.count) else best

    def _use_part(self, sequence: Sequence, known: Match, count: int) -> int:
        """Append a block of which the first `count` tokens count; 0 if there is nothing to be had."""
        if count == 0:
            return 0
        node = self._tree.find(self._last(sequence), known.name)
        block = self._hold(node.block, count) if node is not None else self._copy_from_disk(known.name)
        if block is None:
            return 0
        sequence.blocks.append(block)
        sequence.length += count
        return count

    def _hold(self, block: int, count: int) -> int | None:
        """A known block, held once more; None if writing behind `count` tokens needs a copy, and there is no memory."""
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
        block = self._cache.allocate()
        self._cache.block_view(block)[:] = stored.data
        return block

    def _reason(self, node: Node, rest: tuple[int, ...], known: Match | None, used: int) -> Reason:
        """Why only `used` tokens of rest, which follow node, are cached."""
        agreed = known.count if known is not None else 0
        if agreed > used:
            return "evicted"
        ends = range(agreed + 1, len(rest) + 1)
        names = [digest(node.name, rest[:end]) for end in ends]
        if any(map(self._tree.was_evicted, names)):
            return "evicted"
        if self._store is not None:
            if any(map(self._store.was_evicted, names)):
                return "evicted"
            if any(self._store.seen_with_other_model(digest(node.text, rest[:end])) for end in ends):
                return "model changed"
        return "differs" if known is not None and agreed < min(len(known.tokens), len(rest)) else "never seen"

    def _add(self, parent: Node, tokens: tuple[int, ...], block: int) -> Node:
        """Know a held block."""
        for shorter in self._tree.shorter(parent, tokens):
            self._tree.remove(shorter.block)
            self._cache.forget(shorter.block)
        self._cache.remember(block, len(tokens))
        return self._tree.add(parent, tokens, block)

    def _put(self, node: Node) -> None:
        if self._store is not None:
            assert node.parent is not None
            data = self._cache.block_view(node.block)
            self._store.put(node.name, node.parent.name, node.tokens, data, node.text)
