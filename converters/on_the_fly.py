"""Packs a GGUF into the cache, once."""

import contextlib
import hashlib
from pathlib import Path

from edgellm.converters.convert import Progress, convert
from edgellm.errors import PackedFileError
from edgellm.packed.header import open_header

REVISION = 2  # of the converter; a higher number makes what older ones packed stale


def pack_on_the_fly(source: Path, cache: Path, *, progress: Progress | None = None) -> Path:
    """The packed form of a GGUF file in a cache folder, made now unless it is there.

    A file is known again by its path, size and time of change, not by its bytes: hashing a model of a gigabyte takes
    seconds at every start. What older states of the same path left in the cache goes.
    """
    status = source.stat()
    place = _digest(str(source.resolve()))
    state = _digest(f"{REVISION} {status.st_size} {status.st_mtime_ns}")
    folder = cache / "packed"
    packed = folder / f"{source.stem[:80]}-{place}-{state}.edgellm"
    if _is_sound(packed):
        return packed
    folder.mkdir(parents=True, exist_ok=True)
    convert(source, packed, progress=progress)
    for stale in folder.glob(f"*-{place}-*.edgellm"):
        if stale != packed:
            with contextlib.suppress(OSError):  # another process may hold it open, on Windows
                stale.unlink()
    return packed


def _is_sound(packed: Path) -> bool:
    try:
        open_header(packed)
    except PackedFileError:  # absent, or damaged: either way it is made again
        return False
    return True


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
