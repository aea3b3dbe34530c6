"""The texts whose keys and values are in memory: a tree of blocks, each named by all tokens up to its end.

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

MAX_EVICTED = 10_000  # names that are kept to say why a prompt missed


def digest(parent: bytes, tokens: Seq[int]) -> bytes:
    """The name of a block of tokens behind the block, or root, named parent: blake2b of parent and int32 tokens."""
    return hashlib.blake2b(parent + pack_tokens(tokens), digest_size=HASH_BYTES).digest()


def states_after(name: bytes) -> bytes:
    """What stands in the place of the parent for stored states of texts that go on after the block of this name."""
    return hashlib.blake2b(name + b"states", digest_size=HASH_BYTES).digest()


def count_equal(first: Seq[int], second: Seq[int]) -> int:
    """How many tokens agree before the first that does not."""
    count = 0
    for mine, other in zip(first, second, strict=False):
        if mine != other:
            break
        count += 1
    return count


@dataclass(frozen=True)
class Match:
    """A block that may follow another, and how many of its first tokens agree with a text."""

    name: bytes
    tokens: tuple[int, ...]
    count: int


def closest(blocks: Seq[tuple[bytes, tuple[int, ...]]], text: Seq[int]) -> Match | None:
    """Of blocks as (name, tokens), the one that agrees longest with a text, and of such the last."""
    matches = (Match(name, tokens, count_equal(tokens, text)) for name, tokens in reversed(blocks))
    return max(matches, key=lambda match: match.count, default=None)


@dataclass(eq=False, slots=True)
class Node:
    """A block that is known."""

    name: bytes  # begins with the model
    text: bytes  # as name, but the same for all models
    tokens: tuple[int, ...]  # 1 to KV_BLOCK
    block: int
    parent: "Node | None"  # of the root: None
    children: dict[bytes, "Node"] = field(default_factory=dict)  # by name, most recently used last


class BlockTree:
    """Known blocks by name and by number."""

    def __init__(self, model: bytes) -> None:
        name, text = (hashlib.blake2b(data, digest_size=HASH_BYTES).digest() for data in (model, b""))
        self.root = Node(name, text, (), -1, None)
        self._nodes = {name: self.root}
        self._by_block: dict[int, Node] = {}
        self._evicted: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_block)

    def __getitem__(self, name: bytes) -> Node:
        return self._nodes[name]

    def find(self, parent: Node, name: bytes) -> Node | None:
        """The child of that name, which is now the most recently used."""
        child = parent.children.pop(name, None)
        if child is not None:
            parent.children[name] = child
        return child

    def add(self, parent: Node, tokens: tuple[int, ...], block: int) -> Node:
        """Know a block that was not known."""
        node = Node(digest(parent.name, tokens), digest(parent.text, tokens), tokens, block, parent)
        assert node.name not in self._nodes and block not in self._by_block, (tokens, block)
        parent.children[node.name] = self._nodes[node.name] = self._by_block[block] = node
        return node

    def remove(self, block: int) -> Node:
        """Know a block no more. It has no children: who holds a block holds its parents, and lets go of them later."""
        node = self._by_block.pop(block)
        assert not node.children and node.parent is not None, (block, node.tokens)
        del self._nodes[node.name], node.parent.children[node.name]
        return node

    def evict(self, block: int) -> None:
        """Know a block no more that had to make room, but that it was known."""
        self._evicted[self.remove(block).name] = None
        if len(self._evicted) > MAX_EVICTED:
            self._evicted.popitem(last=False)

    def was_evicted(self, name: bytes) -> bool:
        """Whether the block, if it is not known, is among the last MAX_EVICTED that had to make room."""
        return name in self._evicted

    def shorter(self, parent: Node, tokens: tuple[int, ...]) -> list[Node]:
        """Children whose tokens are the first of these, and not all."""
        return [
            child
            for child in parent.children.values()
            if len(child.tokens) < len(tokens) and child.tokens == tokens[: len(child.tokens)]
        ]

    def check_integrity(self) -> None:
        """Both books hold the same nodes, under their names, and only full blocks have children."""
        for block, node in self._by_block.items():
            parent = node.parent
            assert node.block == block and self._nodes[node.name] is node
            assert parent is not None and self._nodes[parent.name] is parent and parent.children[node.name] is node
            assert node.name == digest(parent.name, node.tokens)
            assert len(node.tokens) == KV_BLOCK or not node.children
        assert len(self._nodes) == len(self._by_block) + 1
        assert sum(len(node.children) for node in self._nodes.values()) == len(self._by_block)
