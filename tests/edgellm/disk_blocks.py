"""Blocks that every process can make again from their number, and programs that use a store of them.

`python -m tests.edgellm.disk_blocks PROGRAM FOLDER ARGUMENTS` runs one of the functions in PROGRAMS.
"""

import contextlib
import hashlib
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellm.memory.disk import writer
from edgellm.memory.disk.folder import clear_folder
from edgellm.memory.disk.lock import remove_unless_locked
from edgellm.memory.disk.record import record_bytes
from edgellm.memory.disk.store import Block, BlockStore

MODEL, OTHER_MODEL = hashlib.sha256(b"model").digest(), bytes(range(32))
BLOCK_BYTES = 50_000  # not a multiple of 64 or of 4096
LARGE_BYTES = 20 * BLOCK_BYTES
RECORD = record_bytes(BLOCK_BYTES)
BUDGET = 1 << 30


def open_store(folder: Path, *, budget: int = BUDGET, model: bytes = MODEL) -> BlockStore:
    return BlockStore(folder, model=model, block_bytes=BLOCK_BYTES, budget_bytes=budget)


def name(number: int, model: bytes = MODEL) -> bytes:
    return hashlib.sha256(model + b"%d" % number).digest() if number >= 0 else bytes(32)


def text(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def tokens(number: int) -> tuple[int, ...]:
    return tuple(range(number, number + 1 + number % 32))


def data(number: int) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, BLOCK_BYTES, np.uint8)


def put(store: BlockStore, number: int, model: bytes = MODEL) -> None:
    store.put(name(number, model), name(number - 1, model), tokens(number), data(number), text(number))


def put_all(store: BlockStore, numbers: range) -> None:
    for number in numbers:
        put(store, number)
    assert store.flush(60)


def is_block(block: Block, number: int) -> bool:
    return (
        block.block_hash == name(number)
        and block.parent_hash == name(number - 1)
        and block.tokens == tokens(number)
        and np.array_equal(block.data, data(number))
    )


def has(store: BlockStore, number: int, model: bytes = MODEL) -> bool:
    """Whether the store knows of a block, which to ask is no use of it."""
    return name(number, model) in dict(store.children(name(number - 1, model)))


@contextlib.contextmanager
def opened(folder: Path, *, budget: int = BUDGET, model: bytes = MODEL) -> Iterator[BlockStore]:
    with contextlib.closing(open_store(folder, budget=budget, model=model)) as store:
        yield store


def fill(folder: Path, numbers: range) -> None:
    with opened(folder) as store:
        put_all(store, numbers)


def held(folder: Path) -> int:
    """Bytes of all segments."""
    return sum(path.stat().st_size for path in folder.glob("*.kv"))


def age(path: Path, seconds: float) -> None:
    """As if it had been used last so long ago."""
    when = path.stat().st_mtime - seconds
    os.utime(path, (when, when))


def write(folder: Path, first: str, count: str, budget: str) -> None:
    """Put and flush blocks one after another."""
    with contextlib.closing(open_store(folder, budget=int(budget))) as store:
        for number in range(int(first), int(first) + int(count)):
            put_all(store, range(number, number + 1))


def kill_writers(folder: Path, count: str) -> None:
    """Fork a writer, kill it within 30 ms, see that nothing is wrong and nothing flushed is lost; count times.

    Prints how many blocks were flushed and how many were found.
    """
    rng = random.Random(0)
    num_flushed = num_found = 0
    for attempt in range(int(count)):
        first = 1000 * attempt
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            _write_until_killed(folder, first, writing)
        os.close(writing)
        flushed = len(os.read(reading, 1)) if attempt % 2 else 0  # half of them not before they have begun
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reading, "rb") as pipe:
            flushed += len(pipe.read())
        with contextlib.closing(_open_large(folder)) as store:
            found = 0
            while (block := store.get(name(first + found))) is not None:
                assert np.array_equal(block.data, _large(first + found)), first + found
                found += 1
            assert not any(has(store, first + number) for number in range(found, 1000))
            assert found >= flushed, (attempt, found, flushed)
        if attempt % 10 == 9:
            clear_folder(folder)
        num_flushed, num_found = num_flushed + flushed, num_found + found
    sys.stdout.write(f"{num_flushed} {num_found}")


def _write_until_killed(folder: Path, first: int, pipe: int) -> None:
    """Put blocks of LARGE_BYTES; write a byte into the pipe for each that was flushed."""
    store = _open_large(folder)
    written = 0  # bytes into the pipe
    for number in range(first, first + 1000):
        store.put(name(number), name(number - 1), tokens(number), _large(number), text(number))
        if number % 3 == 0:
            store.flush()
            os.write(pipe, bytes(number + 1 - first - written))
            written = number + 1 - first
    signal.pause()


def _open_large(folder: Path) -> BlockStore:
    return BlockStore(folder, model=MODEL, block_bytes=LARGE_BYTES, budget_bytes=BUDGET)


def _large(number: int) -> NDArray[np.uint8]:
    return np.tile(data(number), LARGE_BYTES // BLOCK_BYTES)


def fork(folder: Path) -> None:
    """Fork children while blocks are being written; children and parent then put 10 blocks each."""
    writer.QUIET = 0.0
    store = open_store(folder)
    put_all(store, range(10))
    (segment,) = folder.glob("*.kv")
    for child in range(1, 11):
        for number in range(10):
            put(store, 1000 + 10 * child + number)
        if not os.fork():
            signal.alarm(30)
            put_all(store, range(100 * child, 100 * child + 10))
            block = store.get(name(5))
            assert block is not None and is_block(block, 5)
            store.close()
            assert len(list(folder.glob(f"{os.getpid()}-*.kv"))) == 1
            os._exit(0)
    for _ in range(10):
        assert os.wait()[1] == 0
    assert not remove_unless_locked(segment), "a child has unlocked its parent's segment"
    for number in (10 * child + at for child in range(1, 11) for at in range(10)):
        block = store.get(name(1000 + number))
        assert block is not None and is_block(block, 1000 + number), "nothing was dropped"
    store.close()


def fill_disk(folder: Path) -> None:
    """Put 10 blocks where a file may hold only three and a half, and get what is there."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (RECORD * 7 // 2, RECORD * 7 // 2))
    with contextlib.closing(open_store(folder)) as store:
        put_all(store, range(10))
        found = [number for number in range(10) if (block := store.get(name(number))) and is_block(block, number)]
        sys.stdout.write(str(found))


PROGRAMS: dict[str, Callable[..., None]] = {
    program.__name__: program for program in (write, kill_writers, fork, fill_disk)
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
