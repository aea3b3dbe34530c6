"""What is cached equals what would be computed, whoever else is at work, and a miss says why."""

import random
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from edgellm.converters.on_the_fly import pack_on_the_fly
from edgellm.kernels import jit
from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.disk.store import BlockStore
from edgellm.memory.kv import KVCache, KVMemoryError, Sequence
from edgellm.memory.prefix import CacheReport, PrefixCache
from edgellm.memory.tree import count_equal
from edgellm.model.step import Rows, Stepper
from edgellm.packed import open_packed
from tests.edgellm.kv_slots import BLOCK_BYTES, CONFIG, holds, step
from tests.edgellm.test_equalities import TOKENS, kv_cache_dtype, stepper

MODEL, OTHER_MODEL = bytes(range(32)), bytes(32)
TEXT = np.random.default_rng(1).integers(0, 100, 200).tolist()


def changed(tokens: list[int], *positions: int) -> list[int]:
    return [token + 1 if i in positions else token for i, token in enumerate(tokens)]


def make(num_blocks: int = 40, store: BlockStore | None = None, model: bytes = MODEL) -> tuple[KVCache, PrefixCache]:
    cache = KVCache(CONFIG, num_blocks)
    return cache, PrefixCache(cache, model=model, store=store)


@contextmanager
def opened(folder: Path, *, model: bytes = MODEL, budget: int = 100 << 20) -> Iterator[BlockStore]:
    with closing(BlockStore(folder, model=model, block_bytes=BLOCK_BYTES, budget_bytes=budget)) as store:
        yield store


def compute(cache: KVCache, prefix: PrefixCache, tokens: list[int], *, rows: int = 50) -> CacheReport:
    """A request from begin to end: a prompt in chunks of rows; what is found must be right."""
    sequence, report = prefix.begin(tokens)
    assert sequence.length == report.num_cached_tokens < len(tokens)
    assert holds(cache, sequence, tokens)
    while sequence.length < len(tokens):
        step(cache, sequence, tokens, min(len(tokens), sequence.length + rows))
        prefix.commit(sequence, tokens[: sequence.length])
    assert holds(cache, sequence, tokens)
    prefix.end(sequence, tokens)
    prefix.check_integrity()
    assert cache.num_free == cache.num_blocks
    return report


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 64, 65, 96, 200])
def test_the_same_prompt_again_costs_one_token(length: int) -> None:
    cache, prefix = make()
    assert compute(cache, prefix, TEXT[:length]).num_cached_tokens == 0
    assert compute(cache, prefix, TEXT[:length]) == CacheReport(length - 1, 0, "hit")


def test_an_answer_in_the_cache_serves_its_prompt_and_what_follows() -> None:
    cache, prefix = make()
    compute(cache, prefix, TEXT[:150])
    assert compute(cache, prefix, TEXT[:70]) == CacheReport(69, 0, "hit")
    assert compute(cache, prefix, TEXT) == CacheReport(150, 0, "never seen")
    assert cache.num_known == -(-200 // KV_BLOCK)  # the block that ended at 150 has made way for the full one


@pytest.mark.parametrize("position", [0, 1, 31, 32, 40, 63, 64, 198])
def test_an_edit_keeps_all_before_it_and_is_named(position: int) -> None:
    cache, prefix = make()
    compute(cache, prefix, TEXT)
    edited = changed(TEXT, position)
    assert compute(cache, prefix, edited) == CacheReport(position, 0, "differs", position, TEXT[position])
    assert compute(cache, prefix, TEXT) == CacheReport(199, 0, "hit")
    assert compute(cache, prefix, edited) == CacheReport(199, 0, "hit")


def test_of_two_texts_that_differ_the_last_used_is_named() -> None:
    cache, prefix = make()
    first, second, third = TEXT[:40], [*TEXT[:35], 7, 7, 7, 7, 7], [*TEXT[:35], 8, 8, 8, 8, 8]
    for text, expected in ((first, None), (second, TEXT[35]), (third, 7)):
        assert compute(cache, prefix, text).expected == expected
    compute(cache, prefix, first)
    assert compute(cache, prefix, [*TEXT[:35], 9, 9]) == CacheReport(35, 0, "differs", 35, TEXT[35])


def test_requests_in_flight_share_what_is_full() -> None:
    cache, prefix = make()
    first, _ = prefix.begin(TEXT)
    step(cache, first, TEXT, 70)
    prefix.commit(first, TEXT[:70])
    second, report = prefix.begin(TEXT)
    assert report == CacheReport(64, 0, "never seen") and second.blocks == first.blocks[:2]
    for sequence in (first, second):
        step(cache, sequence, TEXT, 100)
        prefix.commit(sequence, TEXT[:100])
    assert second.blocks[:3] == first.blocks[:3]  # computed twice, kept once
    assert holds(cache, first, TEXT) and holds(cache, second, TEXT)
    prefix.end(first, TEXT[:100])
    assert holds(cache, second, TEXT)
    prefix.end(second, TEXT[:100])
    prefix.check_integrity()
    assert cache.num_known == 4 and cache.num_free == 40


@pytest.mark.parametrize("length", [1, 20, 32, 33, 70])
def test_requests_in_flight_share_a_prompt_to_its_end_until_they_go_on(length: int) -> None:
    """Each in its own way; the first is written further in place as long as it is alone with its block."""
    cache, prefix = make()
    prompt = TEXT[:length]
    first, _ = prefix.begin(prompt)
    step(cache, first, prompt)
    prefix.share(first, prompt)
    texts = [[*prompt, number, *TEXT[:80]] for number in range(4)]
    step(cache, first, texts[0], length + 1)
    others = [prefix.begin(text[:length]) for text in texts[1:]]
    for sequence, report in others:
        assert report == CacheReport(length - 1, 0, "hit")
        assert sequence.blocks == first.blocks[: -(-(length - 1) // KV_BLOCK)], "counted, not copied"
    held = cache.num_blocks - cache.num_free
    sequences = [first, *(sequence for sequence, _ in others)]
    assert held == len(first.blocks)
    for sequence, text in zip(sequences, texts, strict=True):
        step(cache, sequence, text, length + 9)
        prefix.check_integrity()
    for sequence, text in zip(sequences, texts, strict=True):
        step(cache, sequence, text)
        assert holds(cache, sequence, text)
    assert len({sequence.blocks[length // KV_BLOCK] for sequence in sequences}) == 4
    for sequence, text in zip(sequences, texts, strict=True):
        prefix.end(sequence, text)
    prefix.check_integrity()
    assert cache.num_free == cache.num_blocks


def test_an_answer_that_goes_on_is_written_behind_what_is_cached() -> None:
    cache, prefix = make()
    compute(cache, prefix, TEXT[:70])
    sequence, report = prefix.begin(TEXT)
    block = sequence.blocks[2]
    step(cache, sequence, TEXT)
    assert report.num_cached_tokens == 70 and sequence.blocks[2] == block
    prefix.end(sequence, TEXT)
    prefix.check_integrity()


def test_a_part_of_a_block_is_used_where_all_memory_is_needed_behind_it() -> None:
    """Its copy needs a block; then the cache does without what is behind the part."""
    cache, prefix = make(num_blocks=4)
    compute(cache, prefix, TEXT[: 2 * KV_BLOCK])
    other = [*TEXT[:40], *TEXT[:88]]
    assert compute(cache, prefix, other, rows=200) == CacheReport(40, 0, "differs", 40, TEXT[40])


def test_a_rewound_sequence_leaves_what_was_known_as_it_was() -> None:
    cache, prefix = make()
    sequence, _ = prefix.begin(TEXT)
    step(cache, sequence, TEXT, 100)
    prefix.commit(sequence, TEXT[:100])
    sequence.truncate(40)
    other = [*TEXT[:40], *[9] * 60]
    step(cache, sequence, other, 80)
    sequence.truncate(70)  # a draft of which ten tokens were wrong
    step(cache, sequence, other)
    prefix.commit(sequence, other)
    prefix.end(sequence, other)
    assert compute(cache, prefix, TEXT) == CacheReport(96, 0, "never seen")
    assert compute(cache, prefix, [*other, 1]) == CacheReport(100, 0, "hit")


def test_chains_are_evicted_from_their_ends() -> None:
    cache, prefix = make(num_blocks=10)
    compute(cache, prefix, TEXT)  # 7 blocks
    compute(cache, prefix, changed(TEXT, 0)[: 5 * KV_BLOCK])
    assert compute(cache, prefix, TEXT) == CacheReport(5 * KV_BLOCK, 0, "evicted")


def test_without_memory_for_a_copy_less_is_used() -> None:
    cache, prefix = make(num_blocks=3)
    compute(cache, prefix, TEXT[:80])
    first, report = prefix.begin(TEXT[:75])
    assert report == CacheReport(64, 0, "evicted") and first.length == 64
    prefix.end(first, TEXT[:64])
    prefix.check_integrity()


def test_forgetting_spares_those_at_work() -> None:
    cache, prefix = make()
    compute(cache, prefix, TEXT)
    sequence, _ = prefix.begin(TEXT[:70])
    prefix.forget()
    prefix.check_integrity()
    assert holds(cache, sequence, TEXT) and cache.num_known == 3
    prefix.end(sequence, TEXT[:69])
    prefix.forget()
    assert cache.num_known == 0
    assert compute(cache, prefix, TEXT) == CacheReport(0, 0, "evicted")


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        compute(*make(store=store), TEXT)
    with opened(tmp_path) as store:
        cache, prefix = make(store=store)
        assert compute(cache, prefix, changed(TEXT, 40)) == CacheReport(0, 40, "differs", 40, TEXT[40])
        assert compute(cache, prefix, TEXT[:190]) == CacheReport(32, 157, "hit")
        assert compute(cache, prefix, TEXT) == CacheReport(160, 39, "hit")  # blocks are longer on disk
        assert compute(cache, prefix, TEXT) == CacheReport(199, 0, "hit")


def test_what_had_no_room_in_memory_comes_from_disk(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        cache, prefix = make(num_blocks=8, store=store)
        compute(cache, prefix, TEXT)
        compute(cache, prefix, changed(TEXT, 0))
        assert store.flush(60)
        report = compute(cache, prefix, TEXT)
        assert report.reason == "hit" and report.from_disk > 0


def test_of_what_is_on_disk_as_much_is_used_as_memory_holds(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        compute(*make(store=store), TEXT)
        cache, prefix = make(num_blocks=6, store=store)
        held, _ = prefix.begin([5])
        held.reserve(3 * KV_BLOCK)
        assert store.flush(60)
        sequence, report = prefix.begin(TEXT)
        assert report == CacheReport(0, 3 * KV_BLOCK, "evicted") and holds(cache, sequence, TEXT)
        prefix.end(sequence, TEXT[: sequence.length])
        prefix.end(held, [])
        prefix.check_integrity()


def test_a_disk_that_could_not_keep_up_is_offered_the_blocks_again_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as store:
        cache, prefix = make(store=store)
        sequence, _ = prefix.begin(TEXT)
        step(cache, sequence, TEXT)
        with monkeypatch.context() as patch:
            patch.setattr(store, "put", lambda *block: None)
            prefix.commit(sequence, TEXT)
        prefix.end(sequence, TEXT)
    with opened(tmp_path) as store:
        assert compute(*make(store=store), TEXT).from_disk == 199


def test_a_damaged_block_is_computed_again(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        compute(*make(store=store), TEXT)
    [path] = tmp_path.glob("*.kv")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with opened(tmp_path) as store:
        cache, prefix = make(store=store)
        assert 0 < compute(cache, prefix, TEXT).num_cached_tokens < 199
        assert store.flush(60)
        prefix.forget()
        assert compute(cache, prefix, TEXT) == CacheReport(0, 199, "hit")


def test_another_model_has_its_own_cache_and_is_given_as_the_reason(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        compute(*make(store=store), TEXT)
    with opened(tmp_path, model=OTHER_MODEL) as store:
        report = compute(*make(store=store, model=OTHER_MODEL), TEXT)
        assert report == CacheReport(0, 0, "model changed")


def test_what_the_disk_had_no_room_for_was_evicted(tmp_path: Path) -> None:
    with opened(tmp_path, budget=30 * BLOCK_BYTES) as store:
        for first in range(10):
            compute(*make(store=store), [first, *TEXT])
            assert store.flush(60)
        assert compute(*make(store=store), [0, *TEXT]).reason == "evicted"
        assert compute(*make(store=store), [9, *TEXT]).reason == "hit"


def test_a_token_that_fills_no_block_costs_no_bookkeeping() -> None:
    """Neither hashing nor counting: the sequence says how much is known."""
    cache, prefix = make()
    sequence, _ = prefix.begin(TEXT)
    step(cache, sequence, TEXT, 40)
    prefix.commit(sequence, TEXT[:40])

    class Unread(list[int]):
        def __getitem__(self, key: object) -> int:
            raise AssertionError("tokens were looked at")

    prefix.commit(sequence, Unread(TEXT[:40]))
    prefix.end(sequence, TEXT[:40])


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
        sequence, report = self.prefix.begin(tokens)
        expected = min(len(tokens) - 1, max(count_equal(text, tokens) for text in self.known))
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
        if self.random.random() < 0.7:
            self.prefix.commit(sequence, tokens[: sequence.length])
            self.known.append(tokens[: sequence.length // KV_BLOCK * KV_BLOCK])

    def rewind(self) -> None:
        sequence, tokens = self.random.choice(self.running)
        sequence.truncate(self.random.randint(0, sequence.length))
        tokens[sequence.length :] = self.random.choices(range(3), k=self.random.randint(1, 80))

    def end(self) -> None:
        sequence, tokens = self.running.pop(self.random.randrange(len(self.running)))
        tokens = tokens[: sequence.length]
        self.prefix.end(sequence, tokens)
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


# With a model


@pytest.fixture(scope="module")
def run(library: jit.Library, tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[
    tuple[Stepper, KVCache]
]:  # fmt: skip
    packed = open_packed(pack_on_the_fly(tiny_gguf, tmp_path_factory.mktemp("prefix")))
    assert kv_cache_dtype(packed) == "bf16"
    with stepper(library, packed) as made:
        yield made


def answer(run: tuple[Stepper, KVCache], prefix: PrefixCache, tokens: list[int]) -> tuple[CacheReport, np.ndarray]:
    """Logits of a text's tokens that are not cached."""
    engine, _ = run
    sequence, report = prefix.begin(tokens)
    sequence.reserve(len(tokens))
    rest = tokens[sequence.length :]
    logits = engine.run([Rows(sequence, rest, range(len(rest)))]).copy()
    prefix.end(sequence, tokens)
    prefix.check_integrity()
    return report, logits


def test_logits_behind_a_cached_prefix_are_those_of_a_fresh_text(run: tuple[Stepper, KVCache]) -> None:
    prefix = PrefixCache(run[1], model=MODEL)
    edited = changed(TOKENS, 77)
    _, fresh = answer(run, prefix, TOKENS)
    prefix.forget()
    _, fresh_edited = answer(run, prefix, edited)
    prefix.forget()
    answer(run, prefix, TOKENS[:250])
    for tokens, whole, cached in ((TOKENS, fresh, 250), (edited, fresh_edited, 77), (TOKENS, fresh, 299)):
        report, logits = answer(run, prefix, tokens)
        assert report.from_memory == cached
        assert np.array_equal(logits, whole[cached:])
    prefix.forget()


def test_logits_after_a_restart_are_those_of_a_fresh_text(run: tuple[Stepper, KVCache], tmp_path: Path) -> None:
    def store() -> BlockStore:
        return BlockStore(tmp_path, model=MODEL, block_bytes=run[1].block_stride, budget_bytes=100 << 20)

    with closing(store()) as blocks:
        prefix = PrefixCache(run[1], model=MODEL, store=blocks)
        _, fresh = answer(run, prefix, TOKENS)
        prefix.forget()
    run[1].block_view(0)[:] = 0
    with closing(store()) as blocks:
        prefix = PrefixCache(run[1], model=MODEL, store=blocks)
        report, logits = answer(run, prefix, TOKENS[:290])
        assert report == CacheReport(0, 289, "hit")
        assert np.array_equal(logits, fresh[289:290])
        prefix.forget()
