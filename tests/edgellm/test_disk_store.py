"""KV blocks on disk: what was put is found again, exactly, or is a miss."""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.disk import appender, evicted, segment, store
from edgellm.memory.disk.folder import CacheFolderError, clear_folder, describe_folder
from edgellm.memory.disk.record import MAX_TOKENS
from edgellm.memory.disk.segment import SegmentWriter
from edgellm.memory.disk.store import BlockStore
from tests.edgellm.disk_blocks import (
    BUDGET,
    MODEL,
    RECORD,
    data,
    is_block,
    name,
    open_store,
    put,
    put_all,
    text,
    tokens,
)

OTHER_MODEL = bytes(range(32))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "kv"


@contextlib.contextmanager
def opened(folder: Path, **options: Any) -> Iterator[BlockStore]:
    with contextlib.closing(open_store(folder, **options)) as opened_store:
        yield opened_store


def fill(folder: Path, numbers: range) -> None:
    with opened(folder) as blocks:
        put_all(blocks, numbers)


def held(folder: Path) -> int:
    """Bytes of all segments."""
    return sum(path.stat().st_size for path in folder.glob("*.kv"))


def age(path: Path, seconds: float) -> None:
    when = path.stat().st_mtime - seconds
    os.utime(path, (when, when))


def test_a_record_holds_the_tokens_of_a_kv_block() -> None:
    assert MAX_TOKENS == KV_BLOCK


def test_blocks_are_the_same_after_reopening(folder: Path) -> None:
    fill(folder, range(40))
    with opened(folder) as blocks:
        for number in range(40):
            assert blocks.contains(name(number))
            block = blocks.get(name(number))
            assert block is not None and is_block(block, number)
        assert blocks.get(name(40)) is None and not blocks.contains(name(40))
        stats = blocks.stats()
    assert (stats.blocks, stats.hits, stats.misses, stats.dropped, stats.write_errors) == (40, 40, 1, 0, 0)
    assert stats.nbytes == held(folder) == 40 * RECORD and stats.segments == len(list(folder.glob("*.kv")))


def test_blocks_are_mapped_read_only_and_aligned(folder: Path) -> None:
    with opened(folder) as blocks:
        put_all(blocks, range(3))
        for number in range(3):
            block = blocks.get(name(number))
            assert block is not None and block.data.ctypes.data % 64 == 0
            assert not block.data.flags.owndata and not block.data.flags.writeable


def test_put_copies_what_it_is_given(folder: Path) -> None:
    scratch = data(1).copy()
    with opened(folder) as blocks:
        blocks.put(name(1), name(0), tokens(1), scratch, text(1))
        scratch[:] = 0
        blocks.flush()
        block = blocks.get(name(1))
        assert block is not None and is_block(block, 1)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda array: array.view(np.uint16).reshape(100, -1)])
def test_put_takes_any_contiguous_buffer(folder: Path, kind: Any) -> None:
    with opened(folder) as blocks:
        blocks.put(name(1), name(0), tokens(1), kind(data(1)), text(1))
        blocks.flush()
        block = blocks.get(name(1))
        assert block is not None and is_block(block, 1)


def test_get_many_stops_at_the_first_miss(folder: Path) -> None:
    fill(folder, range(5))
    fill(folder, range(6, 9))
    with opened(folder) as blocks:
        found = blocks.get_many([name(number) for number in range(9)])
        assert len(found) == 5 and all(is_block(block, number) for number, block in enumerate(found))
        assert (blocks.stats().hits, blocks.stats().misses) == (5, 1)
        assert blocks.get_many([]) == [] and blocks.stats().misses == 1


def test_a_stored_block_is_not_written_again(folder: Path) -> None:
    fill(folder, range(3))
    with opened(folder) as blocks:
        put_all(blocks, range(3))
        put(blocks, 3)
        put_all(blocks, range(4))
    assert held(folder) == 4 * RECORD


def test_a_block_that_two_processes_stored_outlives_either_copy(folder: Path) -> None:
    fill(folder, range(1))
    (first,) = folder.glob("*.kv")
    first.rename(aside := folder.parent / first.name)
    fill(folder, range(1))
    (second,) = folder.glob("*.kv")
    aside.rename(first)
    for path in (first, second):
        with opened(folder) as blocks:
            assert blocks.children(bytes(32)) == [(name(0), tokens(0))]
            path.rename(aside)
            blocks.refresh()
            block = blocks.get(name(0))
            assert block is not None and is_block(block, 0)
            aside.rename(path)


def test_models_share_a_folder_and_not_their_blocks(folder: Path) -> None:
    with opened(folder) as ours, opened(folder, model=OTHER_MODEL) as theirs:
        put_all(ours, range(3))
        for number in (0, 1):
            put(theirs, number, OTHER_MODEL)
        theirs.flush()
        ours.refresh()
        theirs.refresh()
        assert [ours.stats().blocks, theirs.stats().blocks] == [3, 2]
        assert ours.get(name(0, OTHER_MODEL)) is None and theirs.get(name(0)) is None
        assert [ours.seen_with_other_model(text(number)) for number in range(3)] == [True, True, False]
        assert [theirs.seen_with_other_model(text(number)) for number in range(4)] == [True, True, True, False]
    with contextlib.closing(BlockStore(folder, model=MODEL, block_bytes=64, budget_bytes=BUDGET)) as other_size:
        assert other_size.stats().blocks == 0 and other_size.get(name(0)) is None


def test_children_are_the_blocks_that_follow(folder: Path) -> None:
    with opened(folder) as blocks:
        put_all(blocks, range(2))
        blocks.put(text(7), name(0), [5], data(7), text(7))
        blocks.flush()
        assert blocks.children(bytes(32)) == [(name(0), tokens(0))]
        assert blocks.children(name(0)) == [(name(1), tokens(1)), (text(7), (5,))]
        assert blocks.children(name(1)) == []


def test_a_miss_looks_for_the_blocks_of_others_once_a_second(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(folder) as ours, opened(folder) as theirs:
        put_all(theirs, range(1))
        monkeypatch.setattr(store, "REFRESH_INTERVAL", 1000.0)
        assert ours.get(name(0)) is None
        monkeypatch.setattr(store, "REFRESH_INTERVAL", 0.0)
        block = ours.get(name(0))
        assert block is not None and is_block(block, 0)
        put_all(theirs, range(2))
        ours.refresh()
        assert ours.contains(name(1))


def test_the_budget_holds_and_the_oldest_go(folder: Path) -> None:
    budget = 20 * RECORD
    with opened(folder, budget=budget) as blocks:
        for number in range(100):
            put_all(blocks, range(number, number + 1))
            assert held(folder) <= budget
        found = [number for number in range(100) if blocks.get(name(number))]
        assert found == list(range(100 - len(found), 100)) and len(found) >= 17
        gone = [number for number in range(101) if blocks.was_evicted(name(number))]
        assert gone == list(range(found[0]))
        assert blocks.stats().dropped == 0


def test_what_is_used_stays(folder: Path) -> None:
    """Segments hold two blocks; every block is put again or read once before the next is put."""
    with opened(folder, budget=16 * RECORD) as blocks:
        for number in range(60):
            put_all(blocks, range(number, number + 1))
            put_all(blocks, range(1))
            assert blocks.get(name(2)) is not None or number < 2
        assert not blocks.was_evicted(name(0)) and not blocks.was_evicted(name(2))
        assert not blocks.contains(name(4)) and blocks.stats().nbytes <= 16 * RECORD


def test_use_is_seen_by_other_processes(folder: Path) -> None:
    """Of eight segments, a reader uses the oldest; a writer has room for three."""
    fill_one_by_one(folder, range(8))
    for hours, number in enumerate([3, 6, 0, 5, 2, 7, 4, 1]):
        age(segment_of(folder, number), 3600 * (hours + 1))
    with opened(folder) as reader:
        oldest = segment_of(folder, 1)
        for _ in range(2):
            before = oldest.stat().st_mtime_ns
            assert reader.get(name(1)) is not None
        assert oldest.stat().st_mtime_ns == before  # it says so at most once a minute
    with opened(folder, budget=4 * RECORD) as writer:
        put_all(writer, range(9, 10))
        assert [number for number in range(10) if writer.contains(name(number))] == [1, 3, 6, 9]


def fill_one_by_one(folder: Path, numbers: range) -> None:
    """A segment for each block."""
    for number in numbers:
        fill(folder, range(number, number + 1))


def segment_of(folder: Path, number: int) -> Path:
    (path,) = (path for path in folder.glob("*.kv") if path.read_bytes()[40:72] == name(number))
    return path


def test_a_segment_that_is_being_written_is_not_evicted(folder: Path) -> None:
    with opened(folder, budget=4 * RECORD) as living, opened(folder, budget=4 * RECORD) as other:
        put_all(living, range(1))
        for number in range(10, 30):
            put_all(other, range(number, number + 1))
            assert held(folder) <= 4 * RECORD
        living.refresh()
        assert living.get(name(0)) is not None
        assert other.stats().dropped == 0


def test_nothing_is_stored_where_all_is_being_written(folder: Path) -> None:
    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(opened(folder, budget=3 * RECORD)) for _ in range(4)]
        for number, blocks in enumerate(stores):
            put_all(blocks, range(number, number + 1))
        assert [blocks.stats().dropped for blocks in stores] == [0, 0, 0, 1]
        assert held(folder) == 3 * RECORD


def test_a_budget_of_less_than_a_block_stores_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(folder, budget=RECORD - 1) as blocks:
        put_all(blocks, range(3))
        assert blocks.stats().dropped == 3 and held(folder) == 0
    assert [record.message for record in caplog.records if "raise the budget" in record.message] == [
        f"the disk cache stores nothing: a block takes {RECORD} bytes, its budget is {RECORD - 1} bytes; "
        "raise the budget"
    ]
    with opened(folder, budget=RECORD) as blocks:
        put_all(blocks, range(3))
        assert blocks.get(name(2)) is not None and held(folder) == RECORD


def test_the_last_evicted_names_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evicted, "MAX_EVICTED", 5)
    with opened(folder, budget=RECORD) as blocks:
        for number in range(10):
            put_all(blocks, range(number, number + 1))
    with opened(folder) as blocks:
        assert [number for number in range(10) if blocks.was_evicted(name(number))] == [4, 5, 6, 7, 8]
        (folder / "evicted").write_bytes(b"garbage")
        assert not blocks.was_evicted(name(4))


def test_blocks_in_use_outlive_their_segment(folder: Path) -> None:
    fill(folder, range(5))
    with opened(folder) as blocks:
        found = blocks.get_many([name(number) for number in range(5)])
        for path in folder.glob("*.kv"):
            path.unlink()
        assert all(is_block(block, number) for number, block in enumerate(found))
        del found
        assert blocks.get(name(0)) is None
        assert blocks.stats().blocks == 0


def test_a_full_queue_drops_and_does_not_wait(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    append = SegmentWriter.append

    def slow(writer: SegmentWriter, record: Any) -> None:
        assert go.wait(60)
        append(writer, record)

    monkeypatch.setattr(SegmentWriter, "append", slow)
    monkeypatch.setattr(store, "MAX_QUEUED", 4 * RECORD)
    with opened(folder) as blocks:
        for number in range(10):
            put(blocks, number)
            put(blocks, 0)  # being written: neither queued twice nor dropped
        assert blocks.stats().dropped == 6
        assert not blocks.flush(0.01)
        go.set()
        assert blocks.flush(60)
        assert [number for number in range(10) if blocks.get(name(number))] == [0, 1, 2, 3]


def test_a_write_that_fails_ends_storing_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(folder, range(2))

    def full(writer: SegmentWriter, record: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SegmentWriter, "append", full)
    with opened(folder) as blocks:
        put_all(blocks, range(2, 6))
        put_all(blocks, range(6, 8))
        stats = blocks.stats()
        assert (stats.dropped, stats.write_errors) == (6, 1)
        block = blocks.get(name(1))
        assert block is not None and is_block(block, 1)
    assert [record.message for record in caplog.records] == [
        "the disk cache stores nothing any more: [Errno 28] No space left on device"
    ]


def test_a_closed_store_drops(folder: Path) -> None:
    blocks = open_store(folder)
    put_all(blocks, range(1))
    blocks.close()
    put(blocks, 1)
    blocks.close()
    assert blocks.stats().dropped == 1 and not any(
        thread.name == "edgellm-disk-cache" for thread in threading.enumerate()
    )


def test_only_the_user_may_read(folder: Path) -> None:
    with opened(folder, budget=RECORD) as blocks:
        put_all(blocks, range(1))
        put_all(blocks, range(1, 2))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name.split(".")[-1] for path in folder.iterdir()} == {"kv", "evicted"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())


def test_a_folder_that_cannot_be_made_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheFolderError, match=r"file.*File exists.*choose another folder"):
        open_store(tmp_path / "file")


def test_clear_leaves_what_others_are_writing(folder: Path) -> None:
    fill(folder, range(3))
    with opened(folder) as blocks, opened(folder) as other:
        put_all(blocks, range(3, 5))
        put_all(other, range(5, 6))
        blocks.clear()
        assert [number for number in range(6) if blocks.get(name(number))] == [5]
        put_all(blocks, range(1))
        assert blocks.contains(name(0)) and held(folder) == 2 * RECORD
        assert clear_folder(folder) == 0
    assert clear_folder(folder) == 2 * RECORD and held(folder) == 0
    assert clear_folder(folder / "absent") == 0


def test_describe_counts_by_model(folder: Path) -> None:
    fill(folder, range(3))
    (path,) = folder.glob("*.kv")
    age(path, 1000)
    with opened(folder, model=OTHER_MODEL) as blocks:
        put(blocks, 4, OTHER_MODEL)
        blocks.flush()
        theirs, ours = describe_folder(folder)
    assert (theirs.model, theirs.blocks, theirs.tokens, theirs.nbytes) == (OTHER_MODEL, 1, 5, RECORD)
    assert (ours.model, ours.blocks, ours.tokens, ours.nbytes) == (MODEL, 3, 1 + 2 + 3, 3 * RECORD)
    assert ours.last_use == path.stat().st_mtime < theirs.last_use - 900
    assert describe_folder(folder / "absent") == []


def test_foreign_files_are_left_alone_and_reported_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(folder, range(2))
    foreign = {"notes.txt": b"hello", "1-0123456789abcdef.kv": b"not a segment" * 100, "2-x.kv": b"", ".hidden": b""}
    for file, content in foreign.items():
        (folder / file).write_bytes(content)
    (folder / "3-0123456789abcdef.kv").mkdir()
    os.mkfifo(folder / "4-0123456789abcdef.kv")
    (folder / "5-0123456789abcdef.kv").symlink_to(folder / "notes.txt")
    with opened(folder) as blocks:
        for _ in range(3):
            blocks.refresh()
        block = blocks.get(name(1))
        assert block is not None and is_block(block, 1)
        assert len(caplog.records) == 7 and len({record.message for record in caplog.records}) == 7
        assert all(record.levelno == logging.WARNING for record in caplog.records)
    clear_folder(folder)
    assert (folder / "notes.txt").read_bytes() == b"hello" and (folder / ".hidden").exists()


def test_segments_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appender, "MAX_SEGMENT", 5 * RECORD)
    fill(folder, range(12))
    assert sorted(path.stat().st_size // RECORD for path in folder.glob("*.kv")) == [2, 5, 5]
    assert segment.TOUCH_INTERVAL >= 60
