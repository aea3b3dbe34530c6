"""The texts whose keys and values are in memory: a tree of blocks, each with a hash of all tokens up to its end.

    root ── [ 0..31 ] ─┬─ [ 32..63 ] ─── [ 64..70 ]     an answer that ended within a block
                       └─ [ 32..63 ] ─── [ 64..95 ]     another text with the same beginning

A block that is not full has no children, and goes when a sibling has all its tokens and more.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.disk.record import HASH_BYTES, pack_tokens

MAX_EVICTED = 10_000  # hashes that are kept to say why a prompt missed


def hash_block(parent: bytes, tokens: Seq[int]) -> bytes:
    """The hash of a block of tokens, after the one with the hash `parent`: blake2b of that and of int32 tokens."""
    return hashlib.blake2b(parent + pack_tokens(tokens), digest_size=HASH_BYTES).digest()


def states_after(block_hash: bytes) -> bytes:
    """What stands in the place of the parent for stored states of texts that go on after the block with this hash."""
    return hashlib.blake2b(block_hash + b"states", digest_size=HASH_BYTES).digest()


def common_prefix(a: Seq[int], b: Seq[int]) -> int:
    """Tokens with which both begin."""
    shorter = min(len(a), len(b))
    return next((at for at in range(shorter) if a[at] != b[at]), shorter)


@dataclass(frozen=True)
class Match:
    """A block that may follow another, and how many of its first tokens agree with a text."""

    block_hash: bytes
    tokens: tuple[int, ...]
    count: int


def closest(blocks: Seq[tuple[bytes, tuple[int, ...]]], text: Seq[int]) -> Match | None:
    """Of blocks as (hash, tokens), the one that agrees longest with a text, and of such the last."""
    matches = (Match(block_hash, tokens, common_prefix(tokens, text)) for block_hash, tokens in reversed(blocks))
    return max(matches, key=lambda match: match.count, default=None)


@dataclass(eq=False, slots=True)
class Node:
    """A cached block."""

    block_hash: bytes  # of all tokens up to the block's end, after the model's fingerprint
    text_hash: bytes  # the same without the model
    tokens: tuple[int, ...]  # 1 to KV_BLOCK
    block: int
    parent: "Node | None"  # of the root: None
    children: dict[bytes, "Node"] = field(default_factory=dict)  # by hash, most recently used last


class BlockTree:
    """Cached blocks by hash and by number."""

    def __init__(self, model: bytes) -> None:
        block_hash, text_hash = (hashlib.blake2b(data, digest_size=HASH_BYTES).digest() for data in (model, b""))
        self.root = Node(block_hash, text_hash, (), -1, None)
        self._nodes = {block_hash: self.root}
        self._by_block: dict[int, Node] = {}
        self._evicted: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_block)

    def __getitem__(self, block_hash: bytes) -> Node:
        return self._nodes[block_hash]

    def find(self, parent: Node, block_hash: bytes) -> Node | None:
        """The child with that hash, which is now the most recently used."""
        child = parent.children.pop(block_hash, None)
        if child is not None:
            parent.children[block_hash] = child
        return child

    def add(self, parent: Node, tokens: tuple[int, ...], block: int) -> Node:
        """Cache a block that was not cached."""
        node = Node(hash_block(parent.block_hash, tokens), hash_block(parent.text_hash, tokens), tokens, block, parent)
        assert node.block_hash not in self._nodes and block not in self._by_block, (tokens, block)
        parent.children[node.block_hash] = self._nodes[node.block_hash] = self._by_block[block] = node
        return node

    def remove(self, block: int) -> Node:
        """Forget a block. It has no children: who holds a block holds its parents, and lets go of them later."""
        node = self._by_block.pop(block)
        assert not node.children and node.parent is not None, (block, node.tokens)
        del self._nodes[node.block_hash], node.parent.children[node.block_hash]
        return node

    def evict(self, block: int) -> None:
        """Forget an evicted block; remember only its hash."""
        self._evicted[self.remove(block).block_hash] = None
        if len(self._evicted) > MAX_EVICTED:
            self._evicted.popitem(last=False)

    def was_evicted(self, block_hash: bytes) -> bool:
        """Whether the block, if it is not cached, is among the last MAX_EVICTED that were evicted."""
        return block_hash in self._evicted

    def shorter(self, parent: Node, tokens: tuple[int, ...]) -> list[Node]:
        """Children whose tokens are the first of these, and not all."""
        return [
            child
            for child in parent.children.values()
            if len(child.tokens) < len(tokens) and child.tokens == tokens[: len(child.tokens)]
        ]

    def check_integrity(self) -> None:
        """Both books hold the same nodes, under their hashes, and only full blocks have children."""
        for block, node in self._by_block.items():
            parent = node.parent
            assert node.block == block and self._nodes[node.block_hash] is node
            assert (
                parent is not None
                and self._nodes[parent.block_hash] is parent
                and parent.children[node.block_hash] is node
            )
            assert node.block_hash == hash_block(parent.block_hash, node.tokens)
            assert len(node.tokens) == KV_BLOCK or not node.children
        assert len(self._nodes) == len(self._by_block) + 1
        assert sum(len(node.children) for node in self._nodes.values()) == len(self._by_block)
