"""KV blocks on disk, by hash: what the prefix cache keeps from one process to the next.

    put -> BackgroundWriter -> Appender -> SegmentWriter
    get -> Index -> Segment, mapped -> checksum -> Block

Nothing here makes generation wait or fail: what cannot be stored is dropped and logged, what cannot be read is a miss.
A block that was flushed survives the end of the process, however it ends; not a power cut in the same seconds.
"""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellm.memory.disk.appender import Appender
from edgellm.memory.disk.evicted import EvictedNames
from edgellm.memory.disk.folder import Folder
from edgellm.memory.disk.index import Index
from edgellm.memory.disk.record import HASH_BYTES, Data, Header, pack_tokens, record_bytes
from edgellm.memory.disk.segment import StoredBlock
from edgellm.memory.disk.writer import BackgroundWriter

MAX_QUEUED = 64 << 20  # bytes, copied and not yet written
REFRESH_INTERVAL = 1.0  # seconds between two looks at the folder because of a miss

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Block:
    """A KV block as it was put, verified."""

    block_hash: bytes
    parent_hash: bytes
    tokens: tuple[int, ...]
    data: NDArray[np.uint8]  # mapped and read-only


class BlockStore:
    """The blocks of one model and KV format in a folder that processes and models share.

    folder         made if it is not there, for this user alone
    model          HASH_BYTES, the fingerprint of the model file and the KV format
    block_bytes    of a block's keys and values
    state_bytes    of a recurrent state, which is stored as blocks are; None for a model without
    budget_bytes   that all segments in the folder may take, of whichever model
    Errors: CacheFolderError if the folder cannot be made.
    """

    def __init__(
        self, folder: Path, *, model: bytes, block_bytes: int, budget_bytes: int, state_bytes: int | None = None
    ) -> None:
        assert len(model) == HASH_BYTES, len(model)
        self._folder = Folder(folder)
        self._folder.make()
        self._model = model
        self._sizes = {block_bytes} if state_bytes is None else {block_bytes, state_bytes}
        self._budget = budget_bytes
        self._evicted = EvictedNames(folder)
        self._max_queued = MAX_QUEUED
        if record_bytes(block_bytes) > budget_bytes:
            self._max_queued = 0
            log.warning(
                "the disk cache stores nothing: a block takes %d bytes, its budget is %d bytes; raise the budget",
                record_bytes(block_bytes),
                budget_bytes,
            )
        self._begin()

    def _begin(self) -> None:
        """What belongs to this process: locks, a thread, a segment, and what it knows of the folder."""
        self._process = os.getpid()
        self._index = Index(self._folder, self._model, self._sizes)
        self._appender = Appender(self._folder.path, self._index, self._evicted, self._budget)
        self._writer = BackgroundWriter(self._appender.append, self._max_queued)
        self.refresh()

    @property
    def num_blocks(self) -> int:
        self._begin_after_fork()
        with self._index.lock:
            return self._index.num_blocks

    def get(self, block_hash: bytes) -> Block | None:
        """A block, mapped; None is a miss."""
        blocks = self.get_many([block_hash])
        return blocks[0] if blocks else None

    def get_many(self, names: Sequence[bytes]) -> list[Block]:
        """The blocks up to the first miss. All are on their way from the disk before the first is verified."""
        self._begin_after_fork()
        mapped = []
        for block_hash in names:
            if (found := self._map(block_hash)) is None:
                break
            mapped.append(found)
        blocks = []
        for stored, data in mapped:
            if not self._verify(stored, data):
                break
            blocks.append(Block(stored.header.block_hash, stored.header.parent_hash, stored.header.tokens, data))
        return blocks

    def put(self, block_hash: bytes, parent: bytes, tokens: Sequence[int], data: Data, text: bytes) -> None:
        """Store a copy of a block, in the background; it is dropped rather than waited for.

        block_hash     HASH_BYTES: of the model, the KV format and all tokens up to the block's end
        parent   hash of the block before it, or what the first blocks of all texts have in its place
        tokens   1 to 32 ids
        data     block_bytes or state_bytes, contiguous
        text     HASH_BYTES: of all tokens up to the block's end, whatever the model
        """
        assert len(block_hash) == len(parent) == len(text) == HASH_BYTES, (block_hash, parent, text)
        self._begin_after_fork()
        with self._index.lock:
            stored = self._index.find(block_hash)
            if stored is not None:
                stored.segment.touch()  # it is in use, if only in memory
                return
        nbytes = np.frombuffer(data, np.uint8).size
        assert nbytes in self._sizes, (nbytes, self._sizes)
        self._writer.put(Header(block_hash, parent, self._model, text, pack_tokens(tokens), nbytes), data)

    def children(self, parent: bytes) -> list[tuple[bytes, tuple[int, ...]]]:
        """Name and tokens of the stored blocks that follow a block, or begin texts, see `put`."""
        self._begin_after_fork()
        with self._index.lock:
            return [(stored.header.block_hash, stored.header.tokens) for stored in self._index.children(parent)]

    def seen_with_other_model(self, text: bytes) -> bool:
        """Whether another model or KV format has a block of this text, see `put`."""
        self._begin_after_fork()
        with self._index.lock:
            return self._index.has_other_model(text)

    def was_evicted(self, block_hash: bytes) -> bool:
        """Whether the block, if it is not there, was among the last MAX_EVICTED that had to make room."""
        return block_hash in self._evicted

    def refresh(self) -> None:
        """Take in what other processes have added and removed. A miss does so too, at most once a second."""
        self._begin_after_fork()
        with self._index.lock:
            self._refresh()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until what was put is in the file, or dropped; False if that takes longer than timeout, in seconds."""
        self._begin_after_fork()
        return self._writer.flush(timeout)

    def close(self, timeout: float | None = 10.0) -> None:
        """Flush, and end the thread. A disk that does not answer within timeout, in seconds, is given up."""
        self._begin_after_fork()
        if self._writer.close(timeout):
            self._appender.close()

    def _begin_after_fork(self) -> None:
        """A forked child has no thread, locks as they were at that moment, and a segment that its parent writes."""
        if os.getpid() != self._process:
            self._appender.abandon()
            self._begin()

    def _refresh(self) -> None:
        self._index.refresh()
        self._refreshed = time.monotonic()

    def _map(self, block_hash: bytes) -> tuple[StoredBlock, NDArray[np.uint8]] | None:
        with self._index.lock:
            stored = self._index.find(block_hash)
            if stored is None and time.monotonic() - self._refreshed > REFRESH_INTERVAL:
                self._refresh()
                stored = self._index.find(block_hash)
            if stored is None:
                return None
            try:
                data = stored.data()
            except OSError:  # another process has evicted it
                self._index.forget([stored.segment])
                return None
            stored.segment.touch()
            return stored, data

    def _verify(self, stored: StoredBlock, data: NDArray[np.uint8]) -> bool:
        if stored.verify(data):
            return True
        log.warning("%s: the block at byte %d is damaged and is dropped", stored.segment.path, stored.begin)
        with self._index.lock:
            self._index.forget_block(stored)
        return False
