"""Keys and values without a model: what a token leaves in its slot depends on all tokens up to it, as in a model."""

import hashlib
from collections.abc import Sequence as Seq

import numpy as np
from numpy.typing import NDArray

from edgellm.families.network import KeysValues
from edgellm.kernels.kv_formats import kv_formats
from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.kv import KVCache
from edgellm.memory.layout import BlockLayout, LayerKV, StateLayout
from edgellm.memory.sequence import Sequence

FORMAT = kv_formats()["bf16"]
GROUP = BlockLayout({0: LayerKV(KeysValues(1, 32), 0, FORMAT.head_bytes(32))}, FORMAT.head_bytes(32))
LAYOUT = StateLayout(FORMAT, (GROUP,), None)
SLOT = LAYOUT.token_bytes
BLOCK_BYTES = LAYOUT.block_bytes


def slots_of(tokens: Seq[int]) -> NDArray[np.uint8]:
    """What a text's tokens leave behind, [T][SLOT]."""
    text = hashlib.sha256()
    slots = []
    for token in tokens:
        text.update(b"%d " % token)
        slots.append(np.frombuffer(text.digest() * (SLOT // 32), np.uint8))
    return np.array(slots, np.uint8).reshape(len(tokens), SLOT)


def slot(cache: KVCache, sequence: Sequence, position: int) -> NDArray[np.uint8]:
    return cache.block_view(sequence.blocks[position // KV_BLOCK]).reshape(KV_BLOCK, SLOT)[position % KV_BLOCK]


def step(cache: KVCache, sequence: Sequence, tokens: Seq[int], end: int | None = None) -> None:
    """Compute tokens[:end] behind what the sequence holds of them, as a step of a model does."""
    end = len(tokens) if end is None else end
    sequence.reserve(end)
    slots = slots_of(tokens)
    for position in range(sequence.length, end):
        slot(cache, sequence, position)[:] = slots[position]
    sequence.length = end


def holds(cache: KVCache, sequence: Sequence, tokens: Seq[int]) -> bool:
    """Whether what the sequence holds is what the tokens leave behind, to their end or the sequence's."""
    slots = slots_of(tokens)
    return all(np.array_equal(slot(cache, sequence, i), slots[i]) for i in range(min(sequence.length, len(tokens))))
