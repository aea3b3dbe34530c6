"""The names of blocks that had to make room: a file of 32-byte names, oldest first.

It says why a prompt missed, and nothing depends on it: whatever bytes a file of that name holds are taken for names.
"""

from collections.abc import Iterable
from pathlib import Path

from edgellm.memory.disk.record import HASH_BYTES

EVICTED = "evicted"
EVICTED_PART = "evicted.part"
MAX_EVICTED = 10_000  # names


class EvictedNames:
    """The last MAX_EVICTED names, shared by all processes that use the folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / EVICTED
        self._part = folder / EVICTED_PART
        self._names: frozenset[bytes] = frozenset()
        self._version: tuple[int, int] | None = None

    def __contains__(self, block_hash: bytes) -> bool:
        try:
            status = self._path.stat()
            version = (status.st_ino, status.st_mtime_ns)
            if version != self._version:
                self._names = frozenset(self._read())
                self._version = version
        except OSError:
            return False
        return block_hash in self._names

    def add(self, names: Iterable[bytes]) -> None:
        """The caller has locked the folder. Errors: OSError."""
        kept = [*self._read(), *names][-MAX_EVICTED:]
        self._part.touch(mode=0o600)
        self._part.write_bytes(b"".join(kept))
        self._part.replace(self._path)

    def _read(self) -> list[bytes]:
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_EVICTED * HASH_BYTES)
        except FileNotFoundError:
            return []
        return [data[i : i + HASH_BYTES] for i in range(0, len(data) // HASH_BYTES * HASH_BYTES, HASH_BYTES)]
