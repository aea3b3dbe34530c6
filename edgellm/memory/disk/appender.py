"""Adds records to the folder: to a segment of this process, within a budget that all segments share."""

import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellm.memory.disk.evicted import EvictedNames
from edgellm.memory.disk.index import Index
from edgellm.memory.disk.lock import locked_folder, remove_unless_locked
from edgellm.memory.disk.record import Header, seal
from edgellm.memory.disk.segment import SegmentWriter

MAX_SEGMENT = 64 << 20  # bytes
SEGMENTS = 8  # that fill a budget, at least: eviction takes a whole one


class Appender:
    """What the writer's thread does with a record."""

    def __init__(self, folder: Path, index: Index, evicted: EvictedNames, budget_bytes: int) -> None:
        self._folder = folder
        self._index = index
        self._evicted = evicted
        self._budget = budget_bytes
        self._segment_bytes = min(MAX_SEGMENT, budget_bytes // SEGMENTS)
        self._segment: SegmentWriter | None = None
        self._writing = threading.Lock()

    def append(self, header: Header, record: NDArray[np.uint8]) -> bool:
        """Write a record of `new_record`; False if no room can be made. Errors: OSError."""
        seal(record, header)
        with self._writing, locked_folder(self._folder):
            with self._index.lock:
                self._index.refresh()
                if self._index.find(header.block_hash) is not None:  # another process was faster
                    return True
            if self._segment is not None and self._segment.size + record.nbytes > self._segment_bytes:
                self._close_segment()
            if not self._make_room(record.nbytes):
                return False
            if self._segment is None:
                self._segment = SegmentWriter(self._folder)
            self._segment.append(record)
            with self._index.lock:
                self._index.scan(self._segment.path.name, self._segment.size)
        return True

    def close(self) -> None:
        """End the segment, which others may now evict. The next record begins a new one."""
        with self._writing:
            self._close_segment()

    def abandon(self) -> None:
        """Instead of `close` in a forked child, where nobody may ever release the lock."""
        self._close_segment()

    def _close_segment(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _make_room(self, nbytes: int) -> bool:
        """Evict whole segments, least recently used first, until the budget has room for nbytes more."""
        with self._index.lock:
            segments = self._index.segments
        total = sum(segment.size for segment in segments) + nbytes
        evicted = set()
        for segment in segments:
            if total <= self._budget:
                break
            if remove_unless_locked(segment.path):
                total -= segment.size
                evicted.add(segment)
        if evicted:
            with self._index.lock:
                self._index.forget(evicted)
            self._evicted.add(block.header.block_hash for segment in evicted for block in segment.blocks)
        return total <= self._budget
