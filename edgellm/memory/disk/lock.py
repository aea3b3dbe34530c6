"""File locks that end with the process that holds them, however it ends.

A segment is locked as long as its writer may append to it, and the folder while somebody adds to it. Windows has no
such locks; there, a file that any process has open cannot be deleted, which protects a segment as well, and two
processes that add at the same instant may together pass the budget by a block each.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl


def try_lock(descriptor: int) -> bool:
    """True: the caller has the open file to itself, until it closes it."""
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def unlock(descriptor: int) -> None:
    """Let go of a lock now: closing alone would leave it with a child that was forked meanwhile."""
    if sys.platform != "win32":
        fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Alone in the folder, among those who ask; waits for its turn."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            unlock(descriptor)
    finally:
        os.close(descriptor)


def remove_unless_locked(path: Path) -> bool:
    """Delete a file; False if somebody holds its lock or it cannot be deleted."""
    try:
        if sys.platform == "win32":
            path.unlink()
        else:
            with path.open("rb") as file:
                if not try_lock(file.fileno()):
                    return False
                path.unlink()
    except OSError:
        return False
    return True
