"""A thread that writes what it is handed, so that caching never makes generation wait."""

import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgellm.memory.disk.record import Data, Header, new_record

# Writing beside a prompt makes that take 1.1 times as long on two cores, so it waits for a time without blocks
QUIET = 0.5  # seconds
LONGEST = 2.0  # seconds that a block waits: what is younger, a kill may cost

log = logging.getLogger(__name__)


class _Item(NamedTuple):
    header: Header
    record: NDArray[np.uint8]
    put: float  # monotonic, seconds


class BackgroundWriter:
    """A bounded queue of blocks, or states: `write(header, record)` writes each on a thread of its own, if it is calm.

    `write` says False if there is no room for the block. If it raises, nothing is written any more.
    """

    def __init__(self, write: Callable[[Header, NDArray[np.uint8]], bool], max_queued: int) -> None:
        self._write = write
        self._max_queued = max_queued  # bytes; one may be larger. 0: nothing is taken
        self._queue: dict[bytes, _Item] = {}  # by block hash; the first is being written
        self._queued = 0  # bytes
        self._last_put, self._num_flushing = 0.0, 0
        self._changed = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None  # none in a process that only reads
        self._num_dropped = 0

    def put(self, header: Header, data: Data) -> None:
        """Queue a copy of a block; it is dropped if the queue is full or nothing is written any more."""
        with self._changed:
            if header.block_hash in self._queue:
                return
            is_full = bool(self._queue) and self._queued + header.record_bytes > self._max_queued
            if self._stopped or is_full or not self._max_queued:
                self._num_dropped += 1
                return
            self._queued += header.record_bytes
            self._last_put = time.monotonic()
            self._queue[header.block_hash] = _Item(header, new_record(data, header.block_bytes), self._last_put)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="edgellm-disk-cache", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout: float | None) -> bool:
        """Wait until all that is queued has been dealt with; False if that takes longer than timeout, in seconds."""
        with self._changed:
            self._num_flushing += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: not self._queue, timeout)
            finally:
                self._num_flushing -= 1

    def close(self, timeout: float | None) -> bool:
        """Flush, and end the thread; False if the disk did not answer within timeout, in seconds."""
        flushed = self.flush(timeout)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread is not None and flushed:
            self._thread.join()
        if self._num_dropped:
            log.info("the disk cache had no room for %d blocks, or no time", self._num_dropped)
        return flushed

    def _run(self) -> None:
        while (item := self._next()) is not None:
            written = self._try_write(item.header, item.record)
            with self._changed:
                del self._queue[item.header.block_hash]
                self._queued -= item.header.record_bytes
                self._num_dropped += not written
                self._changed.notify_all()

    def _next(self) -> _Item | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._stopped)
            while (seconds := self._seconds_to_wait()) > 0:
                self._changed.wait(seconds)
            return next(iter(self._queue.values()), None)

    def _seconds_to_wait(self) -> float:
        if self._stopped or self._num_flushing or self._queued > self._max_queued * 3 // 4:
            return 0.0
        first = next(iter(self._queue.values()))
        return min(self._last_put + QUIET, first.put + LONGEST) - time.monotonic()

    def _try_write(self, header: Header, record: NDArray[np.uint8]) -> bool:
        if self._stopped:
            return False
        try:
            return self._write(header, record)
        except Exception as error:  # whatever it is, generation goes on
            log.warning("the disk cache stores nothing any more: %s", error, exc_info=not isinstance(error, OSError))
            self._stopped = True
            return False
