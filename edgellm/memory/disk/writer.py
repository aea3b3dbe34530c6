"""A thread that writes what it is handed, so that caching never makes generation wait."""

import logging
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgellm.memory.disk.record import Data, Header, new_record

log = logging.getLogger(__name__)


class BackgroundWriter:
    """A bounded queue of blocks, each written by `write(header, record)` on a thread of its own.

    `write` says False if there is no room for the block. If it raises, nothing is written any more.
    """

    def __init__(self, write: Callable[[Header, NDArray[np.uint8]], bool], max_queued: int) -> None:
        self._write = write
        self._max_queued = max_queued  # blocks
        self._queue: dict[bytes, tuple[Header, NDArray[np.uint8]]] = {}  # by name; the first is being written
        self._changed = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None  # none in a process that only reads
        self._num_dropped = 0

    def put(self, header: Header, data: Data) -> None:
        """Queue a copy of a block; it is dropped if the queue is full or nothing is written any more."""
        with self._changed:
            if header.name in self._queue:
                return
            if self._stopped or len(self._queue) >= self._max_queued:
                self._num_dropped += 1
                return
            self._queue[header.name] = header, new_record(data, header.block_bytes)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="edgellm-disk-cache", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout: float | None) -> bool:
        """Wait until all that is queued has been dealt with; False if that takes longer than timeout, in seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue, timeout)

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
            written = self._try_write(*item)
            with self._changed:
                del self._queue[item[0].name]
                self._num_dropped += not written
                self._changed.notify_all()

    def _next(self) -> tuple[Header, NDArray[np.uint8]] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._stopped)
            return next(iter(self._queue.values()), None)

    def _try_write(self, header: Header, record: NDArray[np.uint8]) -> bool:
        if self._stopped:
            return False
        try:
            return self._write(header, record)
        except Exception as error:  # whatever it is, generation goes on
            log.warning("the disk cache stores nothing any more: %s", error, exc_info=not isinstance(error, OSError))
            self._stopped = True
            return False
