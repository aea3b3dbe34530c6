"""What was computed is found on disk, after a restart and where memory had no room for it."""

from pathlib import Path

import pytest

from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.kv import KVCache
from edgellm.memory.prefix import CacheReport
from tests.edgellm.kv_slots import BLOCK_BYTES, holds, step
from tests.edgellm.prefix_requests import OTHER_MODEL, TEXT, changed, compute, make, opened


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
        held, _ = prefix.match_prefix([5])
        held.reserve(3 * KV_BLOCK)
        assert store.flush(60)
        sequence, report = prefix.match_prefix(TEXT)
        assert report == CacheReport(0, 3 * KV_BLOCK, "evicted") and holds(cache, sequence, TEXT)
        prefix.free(sequence, TEXT[: sequence.length])
        prefix.free(held, [])
        prefix.check_integrity()


def test_a_disk_that_could_not_keep_up_is_offered_the_blocks_again_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as store:
        cache, prefix = make(store=store)
        sequence, _ = prefix.match_prefix(TEXT)
        step(cache, sequence, TEXT)
        with monkeypatch.context() as patch:
            patch.setattr(store, "put", lambda *block: None)
            prefix.cache_blocks(sequence, TEXT)
        prefix.free(sequence, TEXT)
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


def test_memory_is_prepared_for_what_is_on_disk_and_again_when_that_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[int] = []
    monkeypatch.setattr(KVCache, "prepare", lambda cache, num_blocks: prepared.append(num_blocks))
    with opened(tmp_path) as store:
        compute(*make(store=store), TEXT)
    assert prepared == [0]
    with opened(tmp_path) as store:
        cache, prefix = make(store=store)
        assert prepared.pop() == store.num_blocks == 7
        compute(cache, prefix, TEXT)
        assert prepared.pop() == 7
        compute(cache, prefix, TEXT)
        assert not prepared.pop()
