"""Random requests find what was computed, in memory of any size, and never harm each other."""

import random
from pathlib import Path

import pytest

from edgellm.errors import KVMemoryError
from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.disk.store import BlockStore
from edgellm.memory.sequence import Sequence
from edgellm.memory.tree import common_prefix
from tests.edgellm.kv_slots import holds, step
from tests.edgellm.prefix_requests import make, opened


class Workload:
    """Random requests beside a plain list of the texts that are known, and what must be cached of them."""

    def __init__(self, num_blocks: int, store: BlockStore | None, seed: int) -> None:
        self.cache, self.prefix = make(num_blocks, store)
        self.store = store
        self.random = random.Random(seed)
        self.known: list[list[int]] = [[]]
        self.running: list[tuple[Sequence, list[int]]] = []

    def text(self) -> list[int]:
        """Like one before, up to some token."""
        start = self.random.choice(self.known)
        start = start[: self.random.randint(0, len(start))]
        return [*start, *self.random.choices(range(3), k=self.random.randint(1, 80))][:200]

    def begin(self) -> None:
        tokens, room = self.text(), self.cache.num_free
        if self.store is not None:
            assert self.store.flush(60)
        sequence, report = self.prefix.match_prefix(tokens)
        expected = min(len(tokens) - 1, max(common_prefix(text, tokens) for text in self.known))
        assert report.num_cached_tokens == sequence.length <= expected
        if self.store is not None or room == self.cache.num_blocks > 1000:
            assert sequence.length == expected or room < len(tokens) // KV_BLOCK + 2
        if report.reason == "differs":
            position = report.differs_at
            assert position is not None and tokens[position] != report.expected
            assert any(text[: position + 1] == [*tokens[:position], report.expected] for text in self.known)
        self.running.append((sequence, tokens))

    def step(self) -> None:
        sequence, tokens = self.random.choice(self.running)
        try:
            step(self.cache, sequence, tokens, self.random.randint(sequence.length, len(tokens)))
        except KVMemoryError:
            self.end()
            return
        computed = tokens[: sequence.length]
        if self.random.random() < 0.4:
            self.prefix.cache_blocks(sequence, computed)
            self.known.append(computed[: sequence.length // KV_BLOCK * KV_BLOCK])
        elif self.random.random() < 0.5:
            self.prefix.cache_tokens(sequence, computed)
            self.known.append(computed)

    def rewind(self) -> None:
        sequence, tokens = self.random.choice(self.running)
        sequence.rewind(self.random.randint(0, sequence.length))
        tokens[sequence.length :] = self.random.choices(range(3), k=self.random.randint(1, 80))

    def end(self) -> None:
        sequence, tokens = self.running.pop(self.random.randrange(len(self.running)))
        tokens = tokens[: sequence.length]
        self.prefix.free(sequence, tokens)
        self.known.append(tokens)

    def run(self, operations: int) -> None:
        for _ in range(operations):
            options = [self.step, self.step, self.step, self.rewind, self.end] if self.running else []
            self.random.choice([*options, self.begin, self.begin] if len(self.running) < 5 else options)()
            self.prefix.check_integrity()
            for sequence, tokens in self.running:
                assert holds(self.cache, sequence, tokens)
        while self.running:
            self.end()
        self.prefix.check_integrity()
        assert self.cache.num_free == self.cache.num_blocks


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_blocks", [8, 20, 2000])
def test_any_requests_find_what_was_computed(num_blocks: int, seed: int) -> None:
    Workload(num_blocks, None, seed).run(300)


@pytest.mark.parametrize("num_blocks", [8, 20])
def test_any_requests_find_in_memory_or_on_disk_all_that_was_computed(tmp_path: Path, num_blocks: int) -> None:
    with opened(tmp_path) as store:
        Workload(num_blocks, store, 0).run(300)
