"""Requests to a prefix cache without a model; what they find is checked."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from edgellm.memory.disk.store import BlockStore
from edgellm.memory.kv import KVCache
from edgellm.memory.prefix import CacheReport, PrefixCache
from tests.edgellm.kv_slots import BLOCK_BYTES, LAYOUT, holds, step

MODEL, OTHER_MODEL = bytes(range(32)), bytes(32)
TEXT = np.random.default_rng(1).integers(0, 100, 200).tolist()


def changed(tokens: list[int], *positions: int) -> list[int]:
    return [token + 1 if i in positions else token for i, token in enumerate(tokens)]


def make(num_blocks: int = 40, store: BlockStore | None = None, model: bytes = MODEL) -> tuple[KVCache, PrefixCache]:
    cache = KVCache(LAYOUT, num_blocks)
    return cache, PrefixCache(cache, model=model, store=store)


@contextmanager
def opened(folder: Path, *, model: bytes = MODEL, budget: int = 100 << 20) -> Iterator[BlockStore]:
    with closing(BlockStore(folder, model=model, block_bytes=BLOCK_BYTES, budget_bytes=budget)) as store:
        yield store


def compute(cache: KVCache, prefix: PrefixCache, tokens: list[int], *, rows: int = 50) -> CacheReport:
    """A request from begin to end: a prompt in chunks of rows; what is found must be right."""
    sequence, report = prefix.match_prefix(tokens)
    assert sequence.length == report.num_cached_tokens < len(tokens)
    assert holds(cache, sequence, tokens)
    while sequence.length < len(tokens):
        step(cache, sequence, tokens, min(len(tokens), sequence.length + rows))
        prefix.cache_blocks(sequence, tokens[: sequence.length])
    assert holds(cache, sequence, tokens)
    prefix.free(sequence, tokens)
    prefix.check_integrity()
    assert cache.num_free == cache.num_blocks
    return report
