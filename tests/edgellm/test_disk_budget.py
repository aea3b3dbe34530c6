"""The disk cache keeps within its bytes: what was used least recently goes first, and is remembered by name."""

import contextlib
from pathlib import Path

import pytest

from edgellm.memory.disk import appender, evicted, segment
from tests.edgellm.disk_blocks import RECORD, age, fill, has, held, name, opened, put_all


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


def test_what_is_used_stays(folder: Path) -> None:
    """Segments hold two blocks; every block is put again or read once before the next is put."""
    with opened(folder, budget=16 * RECORD) as blocks:
        for number in range(60):
            put_all(blocks, range(number, number + 1))
            put_all(blocks, range(1))
            assert blocks.get(name(2)) is not None or number < 2
        assert not blocks.was_evicted(name(0)) and not blocks.was_evicted(name(2))
        assert not has(blocks, 4) and held(folder) <= 16 * RECORD


def test_use_is_seen_by_other_processes(folder: Path) -> None:
    """Of eight segments, a reader uses the oldest; a writer has room for three."""
    for number in range(8):
        fill(folder, range(number, number + 1))
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
        assert [number for number in range(10) if has(writer, number)] == [1, 3, 6, 9]


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
        assert living.get(name(0)) is not None and other.get(name(29)) is not None


def test_nothing_is_stored_where_all_is_being_written(folder: Path) -> None:
    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(opened(folder, budget=3 * RECORD)) for _ in range(4)]
        for number, blocks in enumerate(stores):
            put_all(blocks, range(number, number + 1))
        assert [has(blocks, number) for number, blocks in enumerate(stores)] == [True, True, True, False]
        assert held(folder) == 3 * RECORD


def test_a_budget_of_less_than_a_block_stores_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(folder, budget=RECORD - 1) as blocks:
        put_all(blocks, range(3))
        assert held(folder) == 0
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


def test_segments_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appender, "MAX_SEGMENT", 5 * RECORD)
    fill(folder, range(12))
    assert sorted(path.stat().st_size // RECORD for path in folder.glob("*.kv")) == [2, 5, 5]
    assert segment.TOUCH_INTERVAL >= 60
