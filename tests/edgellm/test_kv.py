"""Blocks are counted, kept while there is room, and never written by one sequence to the harm of another."""

import mmap
import threading
from pathlib import Path

import pytest

from edgellm.errors import KVMemoryError
from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.buffers import CAN_COMMIT
from edgellm.memory.kv import KVCache
from edgellm.memory.sequence import Sequence
from tests.edgellm.kv_slots import LAYOUT, holds, step

TEXT = list(range(100))


def fork(cache: KVCache, sequence: Sequence) -> Sequence:
    """Another holder of the same blocks."""
    other = Sequence(cache)
    for block in sequence.blocks:
        cache.share(block)
    other.blocks, other.length = list(sequence.blocks), sequence.length
    return other


def test_a_block_is_free_again_when_its_last_holder_lets_go() -> None:
    cache = KVCache(LAYOUT, 2)
    block = cache.allocate()
    cache.share(block)
    cache.release(block)
    assert cache.num_free == 1
    cache.release(block)
    assert cache.num_free == 2
    cache.check_integrity()


def test_known_blocks_are_kept_until_memory_is_needed_and_the_oldest_goes_first() -> None:
    cache, evicted = KVCache(LAYOUT, 3), []
    cache.on_evict = evicted.append
    blocks = cache.allocate_many(3)
    for block in blocks[:2]:
        cache.mark_cached(block, KV_BLOCK)
    for block in blocks:
        cache.release(block)
    assert cache.num_free == 3
    assert cache.allocate() == blocks[2] and evicted == []
    cache.share(blocks[0])
    cache.release(blocks[0])
    assert cache.allocate() == blocks[1] and evicted == [blocks[1]]
    cache.check_integrity()


def test_no_block_is_taken_from_those_that_hold_it() -> None:
    cache = KVCache(LAYOUT, 2)
    cache.allocate_many(2)
    with pytest.raises(KVMemoryError, match="kv_memory"):
        cache.allocate()


@pytest.mark.parametrize("length", [0, 40])
def test_blocks_are_had_all_or_none(length: int) -> None:
    """But a copy of the last one, where another needs it as well, is made first."""
    cache, evicted = KVCache(LAYOUT, 5), []
    cache.on_evict = evicted.append
    known = cache.allocate()
    cache.mark_cached(known, KV_BLOCK)
    cache.release(known)
    sequence = Sequence(cache)
    step(cache, sequence, TEXT[:length])
    other = fork(cache, sequence)
    blocks, num_free, copied = len(sequence.blocks), cache.num_free, length % KV_BLOCK > 0
    with pytest.raises(KVMemoryError):
        sequence.reserve(5 * KV_BLOCK + 1)
    assert (len(sequence.blocks), cache.num_free, evicted) == (blocks, num_free - copied, [])
    assert holds(cache, sequence, TEXT[:length]) and holds(cache, other, TEXT[:length])
    other.rewind(0)
    sequence.rewind(0)
    cache.check_integrity()


@pytest.mark.parametrize("length", [1, 31, 32, 33, 63, 64])
def test_writing_behind_a_shared_beginning_leaves_the_other_as_it_was(length: int) -> None:
    cache = KVCache(LAYOUT, 20)
    first = Sequence(cache)
    step(cache, first, TEXT)
    second = fork(cache, first)
    second.rewind(length)
    changed = TEXT[:length] + [99] * 80
    step(cache, second, changed)
    assert holds(cache, first, TEXT) and holds(cache, second, changed)
    assert len(set(first.blocks) & set(second.blocks)) == length // KV_BLOCK
    first.rewind(0)
    second.rewind(0)
    cache.check_integrity()
    assert cache.num_free == 20


def test_a_block_is_copied_where_the_prefix_cache_knows_what_would_be_overwritten() -> None:
    cache = KVCache(LAYOUT, 20)
    sequence = Sequence(cache)
    step(cache, sequence, TEXT[:10])
    [block] = sequence.blocks
    cache.mark_cached(block, 10)
    step(cache, sequence, TEXT[:12])
    assert sequence.blocks == [block]  # behind what is known
    sequence.rewind(8)
    sequence.reserve(8)
    assert sequence.blocks == [block]  # nothing will be written
    sequence.reserve(9)
    assert sequence.blocks != [block]
    assert holds(cache, sequence, TEXT)
    sequence.rewind(0)
    cache.check_integrity()


def test_a_sequence_alone_is_never_copied() -> None:
    cache = KVCache(LAYOUT, 4)
    sequence = Sequence(cache)
    for length in range(1, 128):
        blocks = list(sequence.blocks)
        step(cache, sequence, TEXT + TEXT, length)
        assert sequence.blocks[: len(blocks)] == blocks
    sequence.rewind(0)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not CAN_COMMIT, reason="the system cannot")
def test_prepared_blocks_are_in_memory_before_they_are_written_and_stay_as_they_are() -> None:
    size = 128 << 20  # more than the memory that other tests may have left to the process, which is there already
    cache = KVCache(LAYOUT, size // LAYOUT.block_bytes)
    first = cache.block_view(0)
    first[:] = 7
    before = resident_bytes()
    cache.prepare(cache.num_blocks)
    for thread in [thread for thread in threading.enumerate() if thread.name == "edgellm-kv"]:
        thread.join()
    if resident_bytes() == before:
        pytest.skip("an older Linux")
    assert resident_bytes() - before > 0.9 * size
    assert (first == 7).all() and not cache.block_view(1).any()
