"""A segment: one append-only file of records, written by one process and read by all.

    a record, whole | a record, whole | a record, torn

A segment only ever grows, so that what is there may be read while it is written: a record counts once the file is long
enough for all of it. A writer that is killed leaves a torn tail. Readers leave it alone, and nobody writes after it.
"""

import contextlib
import logging
import mmap
import os
import secrets
import sys
import time
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellm.memory.disk.lock import try_lock, unlock
from edgellm.memory.disk.record import HEADER_BYTES, Header, checksum, unpack_header

SUFFIX = ".kv"
TOUCH_INTERVAL = 60.0  # seconds

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class StoredBlock:
    """A record that was found in a segment. Its payload is not checked before it is first read."""

    segment: "Segment"
    begin: int  # of the payload, in bytes from the segment's start
    header: Header
    verified: bool = False

    def data(self) -> NDArray[np.uint8]:
        """The payload, mapped and read-only, and on its way from the disk; OSError.

        It stays good when the segment is deleted.
        """
        mapping = self.segment.mapping(self.begin + self.header.block_bytes)
        if sys.platform != "win32":
            page = self.begin - self.begin % mmap.PAGESIZE
            mapping.madvise(mmap.MADV_WILLNEED, page, self.begin + self.header.block_bytes - page)
        return np.frombuffer(mapping, np.uint8, self.header.block_bytes, self.begin)

    def verify(self, data: NDArray[np.uint8]) -> bool:
        """Whether the payload is what was written; computed once."""
        self.verified = self.verified or checksum(data) == self.header.checksum
        return self.verified


class Segment:
    """A segment as its readers see it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0  # bytes of the file when last scanned
        self.last_use = 0.0  # seconds since the epoch, as far as this process knows
        self.blocks: list[StoredBlock] = []
        self._end = 0  # bytes of the sound records
        self._published_use = 0.0  # mtime, which tells other processes of the last use
        self._mapping: weakref.ref[mmap.mmap] | None = None
        self._reported = False

    def scan(self, size: int) -> list[StoredBlock]:
        """The records that were added since the last scan, now that the file has `size` bytes; OSError."""
        self.size = size
        found = []
        with self.path.open("rb", buffering=0) as file:
            while self._end + HEADER_BYTES <= size:
                file.seek(self._end)
                header = unpack_header(file.read(HEADER_BYTES))
                if header is None:
                    self._report()
                    break
                if self._end + header.record_bytes > size:  # being written, or torn
                    break
                found.append(StoredBlock(self, self._end + HEADER_BYTES, header))
                self._end += header.record_bytes
        self.blocks += found
        return found

    def mapping(self, size: int) -> mmap.mmap:
        """The file from its start to byte `size` or further; OSError if it has gone or is shorter.

        The segment holds it weakly, so that a deleted file frees its disk space with the last block in use.
        """
        mapping = self._mapping() if self._mapping else None
        if mapping is None or len(mapping) < size:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < size:
                    raise OSError(f"{self.path} is shorter than {size} bytes")
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._mapping = weakref.ref(mapping)
        return mapping

    def note_use(self, mtime: float) -> None:
        """Take in the last use that some process has published."""
        self._published_use = mtime
        self.last_use = max(self.last_use, mtime)

    def touch(self) -> None:
        """It is being used: say so, to other processes at most once a minute."""
        self.last_use = time.time()
        if self.last_use - self._published_use > TOUCH_INTERVAL:
            self._published_use = self.last_use
            with contextlib.suppress(OSError):  # it may have gone, or be on a read-only disk
                os.utime(self.path)

    def _report(self) -> None:
        if not self._reported:
            log.warning("%s holds no sound record at byte %d; the rest of it is left alone", self.path, self._end)
        self._reported = True


class SegmentWriter:
    """A new segment of this process, locked until it is closed."""

    def __init__(self, folder: Path) -> None:
        self._process = os.getpid()
        while True:
            self.path = folder / f"{self._process}-{secrets.token_hex(8)}{SUFFIX}"
            self.path.touch(mode=0o600, exist_ok=False)
            self._file = self.path.open("ab", buffering=0)
            if try_lock(self._file.fileno()) and os.fstat(self._file.fileno()).st_nlink:
                break
            self._file.close()  # somebody took it for an orphan before it was locked
        self.size = 0  # bytes

    def append(self, record: NDArray[np.uint8]) -> None:
        """Write a record, or with an OSError a part of it, after which nothing may follow."""
        assert os.getpid() == self._process, "a segment is written by the process that made it"
        rest = record.data
        while rest:
            rest = rest[self._file.write(rest) :]
        self.size += record.nbytes

    def close(self) -> None:
        if os.getpid() == self._process:  # a forked child has the same lock, and the parent still needs it
            unlock(self._file.fileno())
        self._file.close()
