"""The folder that the segments lie in, whichever models and processes they are of.

PROCESS-RANDOM.kv     segments
evicted               names of blocks that had to go, see `evicted.py`
"""

import contextlib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import CacheFolderError
from edgellm.memory.disk.evicted import EVICTED, EVICTED_PART
from edgellm.memory.disk.lock import remove_unless_locked
from edgellm.memory.disk.segment import SUFFIX, Segment

SEGMENT_NAME = re.compile(rf"\d+-[0-9a-f]{{16}}{re.escape(SUFFIX)}")

log = logging.getLogger(__name__)


class Folder:
    """Lists the segments of a folder, and says once what else lies there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reported: set[str] = set()

    def make(self) -> None:
        """Errors: CacheFolderError."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise CacheFolderError(
                f"the disk cache cannot be kept in {self.path} ({error.strerror or error}); choose another folder"
            ) from error

    def segments(self) -> dict[str, os.stat_result]:
        """File names of all segments, with their size and last use (mtime); none if it cannot be listed."""
        found = {}
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    if SEGMENT_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                            found[entry.name] = entry.stat(follow_symlinks=False)
                    elif entry.name not in (EVICTED, EVICTED_PART):
                        self._report(entry.name, "it is not part of the disk cache and is left alone")
        except OSError as error:
            self._report("", f"it cannot be listed ({error.strerror or error}), the disk cache finds nothing")
        return found

    def _report(self, name: str, what: str) -> None:
        if name not in self._reported:
            self._reported.add(name)
            log.warning("%s: %s", self.path / name, what)


@dataclass(frozen=True)
class ModelUsage:
    """What a folder holds for one model and KV format."""

    model: bytes
    blocks: int
    tokens: int
    nbytes: int  # of the records
    last_use: float  # seconds since the epoch, of the segments that hold some of it


def describe_folder(path: Path) -> list[ModelUsage]:
    """What a folder holds, the model that was used last first."""
    found: dict[bytes, ModelUsage] = {}
    for name, status in _segments(path).items():
        segment = Segment(path / name)
        with contextlib.suppress(OSError):  # deleted meanwhile, or not readable
            segment.scan(status.st_size)
        for header in (block.header for block in segment.blocks):
            so_far = found.get(header.model, ModelUsage(header.model, 0, 0, 0, 0.0))
            found[header.model] = ModelUsage(
                header.model,
                so_far.blocks + 1,
                so_far.tokens + header.num_tokens,
                so_far.nbytes + header.record_bytes,
                max(so_far.last_use, status.st_mtime),
            )
    return sorted(found.values(), key=lambda usage: -usage.last_use)


def clear_folder(path: Path) -> int:
    """Delete all segments that no living process is writing; the bytes freed."""
    sizes = {name: status.st_size for name, status in _segments(path).items()}
    remove_unless_locked(path / EVICTED)
    return sum(size for name, size in sizes.items() if remove_unless_locked(path / name))


def _segments(path: Path) -> dict[str, os.stat_result]:
    return Folder(path).segments() if path.exists() else {}
