"""Compiled kernels as files, in a cache or shipped with a program.

    kernels-<instruction set>-<identity>.o    SHA-256 of what follows, 32 bytes | target, a line of JSON | object file

The identity names all that the code depends on, so a file is never stale, and its checksum says whether it is whole.
"""

import hashlib
import os
import shutil
import tempfile
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from edgellm.kernels.targets import Target, from_json

DIGEST_BYTES = 32
IDENTITY_DIGITS = 32
WORK_PREFIX = "compiling-"  # of the folders that compilers work in
ABANDONED_AFTER = 3600  # seconds; a compiler takes some 20


class KernelObject(NamedTuple):
    """Kernels of a target, which says how they were tuned, as an object file of the platform."""

    target: Target
    code: bytes


def name_of(target: Target) -> str:
    """The file name of the kernels for a target."""
    return f"kernels-{target.isa}-{identity(target)}.o"


def read(path: Path) -> KernelObject | None:
    """The kernels of a file, or None where there is none or its checksum is wrong."""
    content = read_checked(path)
    if content is None:
        return None
    target, _, code = content.partition(b"\n")
    return KernelObject(from_json(target), code)


def write(path: Path, kernels: KernelObject) -> None:
    """Errors: OSError."""
    write_checked(path, kernels.target.to_json().encode() + b"\n" + kernels.code)


def read_checked(path: Path) -> bytes | None:
    """What `write_checked` wrote, or None where there is none or its checksum is wrong."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, content = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == digest else None


def write_checked(path: Path, content: bytes) -> None:
    """With its SHA-256 in front; the file appears whole or not at all, whoever else writes it. Errors: OSError."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "wb") as file:
        file.write(hashlib.sha256(content).digest() + content)
    Path(temporary).replace(path)


def remove_abandoned(folder: Path) -> None:
    """Removes what compilers left behind that were killed long ago."""
    for work in folder.glob(f"{WORK_PREFIX}*"):
        try:
            is_abandoned = time.time() - work.stat().st_mtime > ABANDONED_AFTER
        except FileNotFoundError:  # its compiler has just ended
            continue
        if is_abandoned:
            shutil.rmtree(work, ignore_errors=True)


def numba_version() -> str | None:
    try:
        return version("numba")
    except PackageNotFoundError:
        return None


def identity(what: object) -> str:
    """Names what a cached file depends on: every kernel source, the compilers, and `what` it is for."""
    return hashlib.sha256(f"{what} {_sources()}".encode()).hexdigest()[:IDENTITY_DIGITS]


@cache
def _sources() -> str:
    digest = hashlib.sha256(f"numba {numba_version()} llvmlite {version('llvmlite')}".encode())
    folder = Path(__file__).parent
    for source in sorted(folder.rglob("*.py")):
        digest.update(f"{source.relative_to(folder)}\0".encode() + source.read_bytes())
    return digest.hexdigest()
