"""Compiled kernels as files, in a cache or shipped with a program.

    kernels-<instruction set>-<identity>.o    SHA-256 of what follows, 32 bytes | target, a line of JSON | object file

The identity names all that the code depends on, so a file is never stale, and its checksum says whether it is whole.
"""

import hashlib
import shutil
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import llvmlite.binding as llvm

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
    return f"kernels-{target.isa}-{_identity(target)}.o"


def read(path: Path) -> KernelObject | None:
    """The kernels of a file, or None where there is none or its checksum is wrong."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, content = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        return None
    target, _, code = content.partition(b"\n")
    return KernelObject(from_json(target), code)


def write(path: Path, kernels: KernelObject) -> None:
    """Not atomically: compilers write in a folder of their own, and what is whole is moved to its place."""
    content = kernels.target.to_json().encode() + b"\n" + kernels.code
    path.write_bytes(hashlib.sha256(content).digest() + content)


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


def _identity(target: Target) -> str:
    """Names what a compiled library depends on: every kernel source, the compilers, the processor."""
    digest = hashlib.sha256(f"{target} numba {numba_version()} llvmlite {llvm.llvm_version_info}".encode())
    folder = Path(__file__).parent
    for source in sorted(folder.rglob("*.py")):
        digest.update(f"{source.relative_to(folder)}\0".encode() + source.read_bytes())
    return digest.hexdigest()[:IDENTITY_DIGITS]
