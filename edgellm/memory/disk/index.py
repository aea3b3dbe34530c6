"""What is stored, by block hash, by parent and by text: the headers of all segments, kept in memory."""

import logging
import threading
from collections.abc import Collection

from edgellm.memory.disk.folder import Folder
from edgellm.memory.disk.segment import Segment, StoredBlock

log = logging.getLogger(__name__)


class Index:
    """The segments of a folder and, of one model and KV format, their blocks. Callers hold `lock`."""

    def __init__(self, folder: Folder, model: bytes, sizes: Collection[int]) -> None:
        """`sizes` are the payloads that the model's records may have, in bytes."""
        self.lock = threading.Lock()
        self._folder = folder
        self._model = model
        self._sizes = sizes
        self._segments: dict[str, Segment] = {}
        self._blocks: dict[bytes, StoredBlock] = {}
        self._children: dict[bytes, list[StoredBlock]] = {}
        self._other_texts: set[bytes] = set()

    @property
    def num_blocks(self) -> int:
        """Of this model and KV format."""
        return len(self._blocks)

    @property
    def segments(self) -> list[Segment]:
        """Least recently used first."""
        return sorted(self._segments.values(), key=lambda segment: segment.last_use)

    def find(self, block_hash: bytes) -> StoredBlock | None:
        return self._blocks.get(block_hash)

    def children(self, parent: bytes) -> list[StoredBlock]:
        return self._children.get(parent, [])

    def has_other_model(self, text: bytes) -> bool:
        """Whether a model but this one has a block of this text."""
        return text in self._other_texts

    def refresh(self) -> None:
        """Take in what processes have added to the folder and removed from it."""
        listed = self._folder.segments()
        shorter = {s for name, s in self._segments.items() if name not in listed or listed[name].st_size < s.size}
        if shorter:
            self.forget(shorter)
        for name, status in listed.items():
            self.scan(name, status.st_size).note_use(status.st_mtime)

    def scan(self, name: str, size: int) -> Segment:
        """Take in what was added to a segment, which now has `size` bytes."""
        segment = self._segments.get(name)
        if segment is None:
            segment = self._segments[name] = Segment(self._folder.path / name)
        if size > segment.size:
            try:
                self._add(segment.scan(size))
            except FileNotFoundError:
                pass  # evicted since it was listed
            except OSError as error:
                log.warning("%s cannot be read (%s); it is left alone", segment.path, error.strerror or error)
        return segment

    def forget(self, segments: Collection[Segment]) -> None:
        """Take out segments that have gone."""
        self._segments = {name: segment for name, segment in self._segments.items() if segment not in segments}
        self._rebuild()

    def forget_block(self, block: StoredBlock) -> None:
        """Take out a block that is not what it says."""
        block.segment.blocks = [other for other in block.segment.blocks if other is not block]
        self._rebuild()

    def _rebuild(self) -> None:
        """A block may be stored twice, by two processes: with one copy gone, the other is found."""
        self._blocks = {}
        self._children = {}
        self._other_texts = set()
        for segment in self._segments.values():
            self._add(segment.blocks)

    def _add(self, blocks: Collection[StoredBlock]) -> None:
        for block in blocks:
            header = block.header
            if header.model != self._model:
                self._other_texts.add(header.text_hash)
            elif header.block_bytes in self._sizes and header.block_hash not in self._blocks:
                self._blocks[header.block_hash] = block
                self._children.setdefault(header.parent_hash, []).append(block)
