"""Kernels ready to call: from the cache of this machine, or compiled into it first.

Whichever way they come, they end as one library with C entry points `void(i64, i64, i64, i64)`, called through ctypes,
which releases the GIL. Nothing here imports Numba: compiling happens in a child process (see compile.py), whose memory
and settings stay out of ours. Where elf.py loads what was compiled, a warm start does without LLVM, too.
"""

import contextlib
import ctypes
import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import cache as remembered
from importlib.metadata import version
from pathlib import Path

from edgellm.errors import KernelError
from edgellm.kernels import elf
from edgellm.kernels.targets import Target, host_target, processor_description, target_for

Progress = Callable[[int, int, str], None]  # done, total, name of the kernel at work
Entry = Callable[[int, int, int, int], None]
ENTRY_TYPE = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)
DIGEST_BYTES = 32
ENTRY_POINTS = ("attend", "combine", "embed", "follow", "lead", "matmul", "norm", "read", "sample")


class LLVMImage:
    """An object file in memory, put there by LLVM: for systems and objects that elf.py does not know."""

    def __init__(self, code: bytes) -> None:
        """Errors: KernelError where the object file does not link."""
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        builder = llvm.JITLibraryBuilder().add_current_process().add_object_img(code)
        for name in ENTRY_POINTS:
            builder.export_symbol(name)
        try:
            self._linker = llvm.create_lljit_compiler()
            self._linked = builder.link(self._linker, "edgellm-kernels")
        except RuntimeError as error:
            raise KernelError(
                f"compiled kernels do not link: {error}; remove the kernel cache and try again"
            ) from error
        self.addresses = {name: int(self._linked[name]) for name in ENTRY_POINTS}


class Library:
    """Linked kernels of one target."""

    def __init__(self, target: Target, code: bytes) -> None:
        """Errors: KernelError where the object file does not link."""
        self.target = target
        self._image = _image(code)
        self.addresses = {name: self._image.addresses[name] for name in ENTRY_POINTS}

    def entry(self, name: str) -> Entry:
        """An entry point, callable from Python without the GIL."""
        function: Entry = ENTRY_TYPE(self.addresses[name])
        return function


def _image(code: bytes) -> elf.Image | LLVMImage:
    if elf.RUNS_HERE:
        try:
            return elf.Image(code)
        except KernelError as error:
            logging.getLogger(__name__).warning("%s; LLVM links them, which costs 50 MB", error)
    return LLVMImage(code)


def load(cache: Path, *, isa: str | None = None, progress: Progress | None = None) -> Library:
    """The kernels for this machine, or for a lesser instruction set that it has.

    Looks in the folder `cache` first; a miss compiles there, which takes seconds and is reported to `progress`.
    Errors: KernelError.
    """
    target = target_for(isa, _host(cache))
    path = _path(cache, target)
    code = _read(path)
    if code is None:
        code = _compile(target, cache, progress)
        _write(path, code)
    return Library(target, code)


def is_cached(cache: Path, *, isa: str | None = None) -> bool:
    """Whether `load` would find the kernels compiled."""
    return _read(_path(cache, target_for(isa))) is not None


def _host(cache: Path) -> Target:
    """`host_target()`, from the cache if it holds this processor: asking LLVM costs 50 MB."""
    description = processor_description()
    if description is None or not elf.RUNS_HERE:
        return host_target()
    path = cache / f"host-{_identity(description)}.json"
    known = _read(path)
    if known is not None:
        return Target(**json.loads(known))
    host = _ask_for_host()
    with contextlib.suppress(OSError):  # a folder that we may only read
        cache.mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps(asdict(host)).encode())
    return host


def _ask_for_host() -> Target:
    """`host_target()`, in a process of its own, which takes LLVM's memory with it."""
    if getattr(sys, "frozen", False):
        return host_target()
    command = [sys.executable, "-P", "-c", "from edgellm.kernels import targets; targets.write_host()"]
    try:
        return Target(**json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise KernelError(f"the processor cannot be asked for what it has: {last[0]}") from error


def _path(cache: Path, target: Target) -> Path:
    return cache / f"kernels-{target.isa}-{_identity(target)}.o"


def _identity(what: object) -> str:
    """Names what a cached file depends on: every kernel source, the compilers, and `what` it is for."""
    return hashlib.sha256(f"{what} {_sources()}".encode()).hexdigest()[:32]


@remembered
def _sources() -> str:
    digest = hashlib.sha256(f"numba {version('numba')} llvmlite {version('llvmlite')}".encode())
    folder = Path(__file__).parent
    for source in sorted(folder.rglob("*.py")):
        digest.update(f"{source.relative_to(folder)}\0".encode() + source.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> bytes | None:
    """What `_write` wrote, or None where there is none or its checksum is wrong."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, code = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(path: Path, code: bytes) -> None:
    """Atomically: processes that compile at once write the same file."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "wb") as file:
        file.write(hashlib.sha256(code).digest() + code)
    Path(temporary).replace(path)


def _compile(target: Target, cache: Path, progress: Progress | None) -> bytes:
    if getattr(sys, "frozen", False):
        raise KernelError(f"this binary carries no kernels for {target.cpu} ({target.isa}), and cannot compile any")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        out = Path(folder) / "kernels.o"
        # -P: not from the working directory, which may hold another edgellm
        command = [sys.executable, "-P", "-m", "edgellm.kernels.compile", str(out), target.isa]
        with (
            (Path(folder) / "errors").open("w+") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as child,
        ):
            assert child.stdout is not None
            for line in child.stdout:
                counts, _, name = line.strip().partition(" ")
                done, _, total = counts.partition("/")
                if progress is not None:
                    progress(int(done), int(total), name)
            if child.wait():
                errors.seek(0)
                last = errors.read().strip().splitlines()[-1:] or ["no message"]
                raise KernelError(f"compiling the kernels failed: {last[0]}; numba {version('numba')} on {target.cpu}")
        return out.read_bytes()
