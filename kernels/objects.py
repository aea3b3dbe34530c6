"""Compiled units as files, in a cache or shipped with a program.

    <unit>-<instruction set>-<identity>.o     SHA-256 of what follows, 32 bytes | a line of JSON | object file
    tuned-<identity>.json                     SHA-256 | a Target with what was measured on this processor

The line says the target and the names that the object exports. The identity names all that the code depends on, so a
file is never stale, and its checksum says whether it is whole.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from edgellm.kernels.targets import Target, from_json
from edgellm.kernels.units import Unit, core_sources

DIGEST_BYTES = 32
IDENTITY_DIGITS = 32
WORK_PREFIX = "compiling-"  # of the folders that compilers work in
SOURCES, OF_ALL = "sources.json", "all units"
ABANDONED_AFTER = 3600  # seconds; a compiler takes some 20


class KernelObject(NamedTuple):
    """A unit's kernels of a target, which says how they were tuned, as an object file of the platform."""

    target: Target
    names: tuple[str, ...]
    code: bytes


def name_of(unit: Unit, target: Target) -> str:
    """The file name of a unit's kernels for a target."""
    return f"{unit.name}-{target.isa}-{identity(target, unit)}.o"


def read(path: Path) -> KernelObject | None:
    """The kernels of a file, or None where there is none or its checksum is wrong."""
    content = read_checked(path)
    if content is None:
        return None
    line, _, code = content.partition(b"\n")
    target, names = json.loads(line)
    return KernelObject(from_json(target), tuple(names), code)


def write(path: Path, kernels: KernelObject) -> None:
    """Errors: OSError."""
    line = json.dumps([kernels.target.to_json(), kernels.names])
    write_checked(path, line.encode() + b"\n" + kernels.code)


def read_tuned(cache: Path, host: Target) -> Target | None:
    """The host with what was measured on it, or None where that is not known."""
    content = read_checked(cache / tuned_name(host))
    return None if content is None else from_json(content)


def tuned_name(host: Target) -> str:
    return f"tuned-{identity(host)}.json"


def read_checked(path: Path) -> bytes | None:
    """What `write_checked` wrote, or None where there is none or its checksum is wrong."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    digest = data[:DIGEST_BYTES]
    content = data[DIGEST_BYTES:]
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


def installed_version(package: str) -> str | None:
    """The version of a package, or None where it is not installed.

    The name of its folder NAME-VERSION.dist-info says it. importlib.metadata takes 12 ms to import, so it is asked only
    where there is no such folder.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    for folder in Path(spec.origin).parents[1].glob(f"{package}-*.dist-info"):
        return folder.stem.partition("-")[2]
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def identity(what: object, unit: Unit | None = None) -> str:
    """Names what a cached file depends on: the core's sources and the unit's, the compilers, and `what` it is for."""
    own = "" if unit is None else _source(unit)
    return hashlib.sha256(f"{what} {_core()} {own}".encode()).hexdigest()[:IDENTITY_DIGITS]


def write_sources(folder: Path, units: Iterable[Unit]) -> None:
    """Note beside prebuilt kernels what they were built from, for a program that carries neither sources nor Numba."""
    known = {unit.name: _source(unit) for unit in units}
    (folder / SOURCES).write_text(json.dumps({OF_ALL: _core()} | known))


def _core() -> str:
    return _known_sources().get(OF_ALL, "") if is_frozen() else _core_digest()


def _source(unit: Unit) -> str:
    if is_frozen():
        return _known_sources().get(unit.name, "")
    return hashlib.sha256(unit.source.read_bytes()).hexdigest()


@cache
def _core_digest() -> str:
    digest = hashlib.sha256(f"numba {installed_version('numba')} llvmlite {installed_version('llvmlite')}".encode())
    for source in core_sources():
        digest.update(f"{source.relative_to(Path(__file__).parent)}\0".encode() + source.read_bytes())
    return digest.hexdigest()


def _known_sources() -> dict[str, str]:
    """What `write_sources` noted; nothing where the program carries no kernels."""
    try:
        known: dict[str, str] = json.loads((prebuilt_folder() / SOURCES).read_text())
    except FileNotFoundError:
        return {}
    return known


def is_frozen() -> bool:
    """Whether this is a standalone program, without sources and an interpreter to start."""
    return hasattr(sys, "_MEIPASS")


def prebuilt_folder() -> Path:
    """Where a program that carries kernels has them; the folder need not be there."""
    return Path(getattr(sys, "_MEIPASS", Path(__file__).parent), "prebuilt")
