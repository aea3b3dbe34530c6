"""KV blocks on disk: what was put is found again, exactly, or is a miss."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.disk import store, writer
from edgellm.memory.disk.record import MAX_TOKENS, Header, pack_tokens
from edgellm.memory.disk.segment import SegmentWriter
from edgellm.memory.disk.store import BlockStore
from tests.edgellm.disk_blocks import (
    BUDGET,
    MODEL,
    OTHER_MODEL,
    RECORD,
    data,
    fill,
    has,
    held,
    is_block,
    name,
    open_store,
    opened,
    put,
    put_all,
    text,
    tokens,
)


def test_a_record_holds_the_tokens_of_a_kv_block() -> None:
    assert MAX_TOKENS == KV_BLOCK


def test_blocks_are_the_same_after_reopening(folder: Path) -> None:
    fill(folder, range(40))
    with opened(folder) as blocks:
        for number in range(40):
            block = blocks.get(name(number))
            assert block is not None and is_block(block, number)
        assert blocks.get(name(40)) is None
    assert held(folder) == 40 * RECORD


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
        assert blocks.get_many([]) == []


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
        assert [has(ours, number) for number in range(3)] == [True, True, True]
        assert [has(theirs, number, OTHER_MODEL) for number in range(3)] == [True, True, False]
        assert ours.get(name(0, OTHER_MODEL)) is None and theirs.get(name(0)) is None
        assert [ours.seen_with_other_model(text(number)) for number in range(3)] == [True, True, False]
        assert [theirs.seen_with_other_model(text(number)) for number in range(4)] == [True, True, True, False]
    with contextlib.closing(BlockStore(folder, model=MODEL, block_bytes=64, budget_bytes=BUDGET)) as other_size:
        assert not has(other_size, 0) and other_size.get(name(0)) is None


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
        assert has(ours, 1)


def test_blocks_in_use_outlive_their_segment(folder: Path) -> None:
    fill(folder, range(5))
    with opened(folder) as blocks:
        found = blocks.get_many([name(number) for number in range(5)])
        for path in folder.glob("*.kv"):
            path.unlink()
        assert all(is_block(block, number) for number, block in enumerate(found))
        del found
        assert blocks.get(name(0)) is None
        blocks.refresh()
        assert not any(has(blocks, number) for number in range(5))


def test_a_full_queue_drops_and_does_not_wait(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    go = threading.Event()
    append = SegmentWriter.append

    def slow(writer: SegmentWriter, record: Any) -> None:
        assert go.wait(60)
        append(writer, record)

    monkeypatch.setattr(SegmentWriter, "append", slow)
    monkeypatch.setattr(store, "MAX_QUEUED", 4 * RECORD)
    with caplog.at_level(logging.INFO), opened(folder) as blocks:
        for number in range(10):
            put(blocks, number)
            put(blocks, 0)  # being written: neither queued twice nor dropped
        assert not blocks.flush(0.01)
        go.set()
        assert blocks.flush(60)
        assert [number for number in range(10) if blocks.get(name(number))] == [0, 1, 2, 3]
    assert [record.message for record in caplog.records] == ["the disk cache had no room for 6 blocks, or no time"]


def test_blocks_wait_for_quiet_or_a_flush_or_a_queue_that_fills(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_QUEUED", 8 * RECORD)
    monkeypatch.setattr(writer, "QUIET", 1000.0)
    monkeypatch.setattr(writer, "LONGEST", 1000.0)
    with opened(folder) as blocks:
        for number in range(6):
            put(blocks, number)
        time.sleep(0.05)
        assert held(folder) == 0
        put(blocks, 6)  # the seventh of eight
        wait_for(lambda: held(folder) == RECORD)
        assert blocks.flush(60)
        assert held(folder) == 7 * RECORD


@pytest.mark.parametrize("soon", ["QUIET", "LONGEST"])
def test_a_block_waits_no_longer_than_it_must(folder: Path, monkeypatch: pytest.MonkeyPatch, soon: str) -> None:
    for name_, seconds in {"QUIET": 1000.0, "LONGEST": 1000.0, soon: 0.05}.items():
        monkeypatch.setattr(writer, name_, seconds)
    with opened(folder) as blocks:
        put(blocks, 0)
        assert held(folder) == 0
        wait_for(lambda: held(folder) == RECORD)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


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
        assert not any(has(blocks, number) for number in range(2, 8))
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
    assert held(folder) == RECORD and not has(blocks, 1)
    assert not any(thread.name == "edgellm-disk-cache" for thread in threading.enumerate())


def test_large_states_fill_the_queue_sooner_than_blocks() -> None:
    """It is bounded in bytes, and takes one record of any size."""
    go, written = threading.Event(), list[int]()

    def write(header: Header, record: Any) -> bool:
        written.append(header.block_bytes)
        return go.wait(60)

    for sizes, kept in (([10, 1], [10]), ([6, 6, 1, 1], [6, 1]), ([1] * 9, [1] * 7)):
        queue = writer.BackgroundWriter(write, 8 * RECORD)
        for number, size in enumerate(sizes):
            header = Header(name(number), name(9), MODEL, text(9), pack_tokens([1]), size * RECORD)
            queue.put(header, np.zeros(size * RECORD, np.uint8))
        go.set()
        assert queue.close(60) and written == [size * RECORD for size in kept]
        go.clear()
        written.clear()
