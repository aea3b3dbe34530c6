"""Segments are hostile input: cut, flipped or forged, they never give a wrong payload nor an exception."""

import contextlib
import logging
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from edgellm.memory.disk import record
from edgellm.memory.disk.record import HEADER_BYTES, checksum, unpack_header
from edgellm.memory.disk.segment import Segment
from tests.edgellm.disk_blocks import BLOCK_BYTES, RECORD, has, is_block, name, open_store, put_all

FIELDS = (0, 8, 12, 16, 24, 40, 72, 104, 136, 168, 296, 304, HEADER_BYTES)  # where they begin


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    """Three blocks."""
    with contextlib.closing(open_store(tmp_path)) as blocks:
        put_all(blocks, range(3))
    (path,) = tmp_path.glob("*.kv")
    assert path.stat().st_size == 3 * RECORD
    return path


def found(folder: Path) -> set[int]:
    """Numbers of the blocks that are there; all others miss."""
    with contextlib.closing(open_store(folder)) as blocks:
        present = {number: block for number in range(5) if (block := blocks.get(name(number)))}
        assert all(is_block(block, number) for number, block in present.items())
        assert {number for number in range(5) if has(blocks, number)} == set(present)
        return set(present)


@pytest.mark.parametrize("index", range(3))
def test_a_torn_tail_costs_only_itself(segment: Path, index: int, caplog: pytest.LogCaptureFixture) -> None:
    whole = segment.read_bytes()
    payload = (HEADER_BYTES, HEADER_BYTES + 64, 4096, HEADER_BYTES + BLOCK_BYTES // 2, HEADER_BYTES + BLOCK_BYTES)
    inside = {*FIELDS, *payload, RECORD - 1}
    for length in sorted({cut + near for cut in inside for near in (-1, 0, 1) if 0 <= cut + near < RECORD}):
        segment.write_bytes(whole[: index * RECORD + length])
        assert found(segment.parent) == set(range(index)), length
    assert not caplog.records  # a killed writer is nothing to worry about


def test_a_torn_tail_is_found_whole_when_it_has_been_written(segment: Path) -> None:
    whole = segment.read_bytes()
    segment.write_bytes(whole[: RECORD + 1000])
    with contextlib.closing(open_store(segment.parent)) as blocks:
        assert not has(blocks, 1)
        for length in (2 * RECORD - 1, 2 * RECORD, 3 * RECORD):
            segment.write_bytes(whole[:length])
            blocks.refresh()
            assert [has(blocks, number) for number in range(3)] == [number < length // RECORD for number in range(3)]


def test_a_segment_that_shrinks_loses_its_blocks_only(segment: Path) -> None:
    whole = segment.read_bytes()
    with contextlib.closing(open_store(segment.parent)) as blocks:
        segment.write_bytes(whole[: 2 * RECORD - 100])
        assert blocks.get(name(1)) is None
        blocks.refresh()
        block = blocks.get(name(0))
        assert block is not None and is_block(block, 0) and blocks.get(name(2)) is None


@pytest.mark.parametrize("seed", range(200))
def test_flipped_bits_never_give_a_wrong_block(segment: Path, seed: int) -> None:
    rng = random.Random(seed)
    damaged = bytearray(segment.read_bytes())
    header = rng.random() < 0.5
    for _ in range(rng.choice((1, 1, 2, 100))):
        place = rng.randrange(3) * RECORD + rng.randrange(HEADER_BYTES if header else RECORD)
        damaged[place] ^= 1 << rng.randrange(8)
    segment.write_bytes(damaged)
    found(segment.parent)


@pytest.mark.parametrize("seed", range(50))
def test_pages_that_never_reached_the_disk_are_noticed(segment: Path, seed: int) -> None:
    """After a power cut, pages may hold zeros, or what lay there before."""
    rng = random.Random(seed)
    damaged = bytearray(segment.read_bytes())
    page, other = (4096 * rng.randrange(len(damaged) // 4096) for _ in range(2))
    damaged[page : page + 4096] = rng.choice((bytes(4096), damaged[other : other + 4096]))
    segment.write_bytes(damaged)
    if page != other:
        assert found(segment.parent) != {0, 1, 2}


def test_a_damaged_payload_is_dropped_reported_and_stored_again(
    segment: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = bytearray(segment.read_bytes())
    damaged[RECORD + HEADER_BYTES + 12_345] ^= 1
    segment.write_bytes(damaged)
    with contextlib.closing(open_store(segment.parent)) as blocks:
        assert len(blocks.get_many([name(number) for number in range(3)])) == 1
        assert blocks.get(name(1)) is None
        block = blocks.get(name(2))
        assert block is not None and is_block(block, 2)
        assert [has(blocks, number) for number in range(3)] == [True, False, True]
        put_all(blocks, range(3))
        block = blocks.get(name(1))
        assert block is not None and is_block(block, 1)
    assert [entry.message for entry in caplog.records] == [
        f"{segment}: the block at byte {RECORD + HEADER_BYTES} is damaged and is dropped"
    ]


def test_a_damaged_header_ends_the_segment_and_is_reported_once(
    segment: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = bytearray(segment.read_bytes())
    damaged[RECORD] ^= 1
    segment.write_bytes(damaged)
    with contextlib.closing(open_store(segment.parent)) as blocks:
        for _ in range(3):
            blocks.refresh()
        assert [has(blocks, number) for number in range(3)] == [True, False, False]
    assert [entry.levelno for entry in caplog.records] == [logging.WARNING]


@pytest.mark.parametrize(
    ("place", "kind", "value"),
    [(12, "<I", 0), (12, "<I", 33), (12, "<I", 1 << 31), (16, "<Q", 0), (16, "<Q", 1), (16, "<Q", BLOCK_BYTES + 64),
     (16, "<Q", 3 * RECORD), (16, "<Q", 1 << 63), (16, "<Q", (1 << 64) - 1), (8, "<I", 2)],
)  # fmt: skip
def test_forged_headers_are_not_believed(segment: Path, place: int, kind: str, value: int) -> None:
    """With the right seal, so that only the checks of the sizes are left."""
    forged = bytearray(segment.read_bytes())
    struct.pack_into(kind, forged, RECORD + place, value)
    fields = bytes(forged[RECORD : RECORD + 304])
    forged[RECORD + 304 : RECORD + HEADER_BYTES] = record._digest(fields)
    segment.write_bytes(forged)
    assert found(segment.parent) == {0}


def test_random_files_hold_nothing(tmp_path: Path) -> None:
    for seed in range(20):
        path = tmp_path / f"{seed}-{'0' * 16}.kv"
        path.write_bytes(record._MAGIC[: seed % 9] + random.Random(seed).randbytes(seed * 97))
    assert found(tmp_path) == set()
    zeros = tmp_path / f"0-{'1' * 16}.kv"
    zeros.write_bytes(bytes(10_000))
    scanned = Segment(zeros)
    assert scanned.scan(10_000) == []
    assert unpack_header(b"") is None


def test_the_checksum_tells_every_single_change() -> None:
    payload = np.random.default_rng(0).integers(0, 256, 3 * 4096 + 100, np.uint8)
    right = checksum(payload)
    for place in range(0, payload.size, 61):
        payload[place] ^= 128
        assert checksum(payload) != right, place
        payload[place] ^= 128
    for a, b in ((0, 4096), (8, 16), (4096, 8192 + 8), (0, payload.size - 8)):
        swapped = payload.copy()
        swapped[a : a + 8], swapped[b : b + 8] = payload[b : b + 8], payload[a : a + 8]
        assert checksum(swapped) != right, (a, b)
    assert checksum(payload) == right
