"""What is cached in memory equals what would be computed, whoever else is at work, and a miss says why."""

import pytest

from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.prefix import CacheReport
from tests.edgellm.kv_slots import holds, step
from tests.edgellm.prefix_requests import TEXT, changed, compute, make


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
    assert cache.num_cached == -(-200 // KV_BLOCK)  # the block that ended at 150 has made way for the full one


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
    first, _ = prefix.match_prefix(TEXT)
    step(cache, first, TEXT, 70)
    prefix.cache_blocks(first, TEXT[:70])
    second, report = prefix.match_prefix(TEXT)
    assert report == CacheReport(64, 0, "never seen") and second.blocks == first.blocks[:2]
    for sequence in (first, second):
        step(cache, sequence, TEXT, 100)
        prefix.cache_blocks(sequence, TEXT[:100])
    assert second.blocks[:3] == first.blocks[:3]  # computed twice, kept once
    assert holds(cache, first, TEXT) and holds(cache, second, TEXT)
    prefix.free(first, TEXT[:100])
    assert holds(cache, second, TEXT)
    prefix.free(second, TEXT[:100])
    prefix.check_integrity()
    assert cache.num_cached == 4 and cache.num_free == 40


@pytest.mark.parametrize("length", [1, 20, 32, 33, 70])
def test_requests_in_flight_share_a_prompt_to_its_end_until_they_go_on(length: int) -> None:
    """Each in its own way; the first is written further in place as long as it is alone with its block."""
    cache, prefix = make()
    prompt = TEXT[:length]
    first, _ = prefix.match_prefix(prompt)
    step(cache, first, prompt)
    prefix.cache_tokens(first, prompt)
    texts = [[*prompt, number, *TEXT[:80]] for number in range(4)]
    step(cache, first, texts[0], length + 1)
    others = [prefix.match_prefix(text[:length]) for text in texts[1:]]
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
        prefix.free(sequence, text)
    prefix.check_integrity()
    assert cache.num_free == cache.num_blocks


def test_an_answer_that_goes_on_is_written_behind_what_is_cached() -> None:
    cache, prefix = make()
    compute(cache, prefix, TEXT[:70])
    sequence, report = prefix.match_prefix(TEXT)
    block = sequence.blocks[2]
    step(cache, sequence, TEXT)
    assert report.num_cached_tokens == 70 and sequence.blocks[2] == block
    prefix.free(sequence, TEXT)
    prefix.check_integrity()


def test_a_part_of_a_block_is_used_where_all_memory_is_needed_behind_it() -> None:
    """Its copy needs a block; then the cache does without what is behind the part."""
    cache, prefix = make(num_blocks=4)
    compute(cache, prefix, TEXT[: 2 * KV_BLOCK])
    other = [*TEXT[:40], *TEXT[:88]]
    assert compute(cache, prefix, other, rows=200) == CacheReport(40, 0, "differs", 40, TEXT[40])


def test_a_rewound_sequence_leaves_what_was_known_as_it_was() -> None:
    cache, prefix = make()
    sequence, _ = prefix.match_prefix(TEXT)
    step(cache, sequence, TEXT, 100)
    prefix.cache_blocks(sequence, TEXT[:100])
    sequence.rewind(40)
    other = [*TEXT[:40], *[9] * 60]
    step(cache, sequence, other, 80)
    sequence.rewind(70)  # a draft of which ten tokens were wrong
    step(cache, sequence, other)
    prefix.cache_blocks(sequence, other)
    prefix.free(sequence, other)
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
    first, report = prefix.match_prefix(TEXT[:75])
    assert report == CacheReport(64, 0, "evicted") and first.length == 64
    prefix.free(first, TEXT[:64])
    prefix.check_integrity()


def test_forgetting_spares_those_at_work() -> None:
    cache, prefix = make()
    compute(cache, prefix, TEXT)
    sequence, _ = prefix.match_prefix(TEXT[:70])
    prefix.forget()
    prefix.check_integrity()
    assert holds(cache, sequence, TEXT) and cache.num_cached == 3
    prefix.free(sequence, TEXT[:69])
    prefix.forget()
    assert cache.num_cached == 0
    assert compute(cache, prefix, TEXT) == CacheReport(0, 0, "evicted")


def test_a_token_that_fills_no_block_costs_no_bookkeeping() -> None:
    """Neither hashing nor counting: the sequence says how much is known."""
    cache, prefix = make()
    sequence, _ = prefix.match_prefix(TEXT)
    step(cache, sequence, TEXT, 40)
    prefix.cache_blocks(sequence, TEXT[:40])

    class Unread(list[int]):
        def __getitem__(self, key: object) -> int:
            raise AssertionError("tokens were looked at")

    prefix.cache_blocks(sequence, Unread(TEXT[:40]))
    prefix.free(sequence, TEXT[:40])
