"""Kernels ready to call: from the cache of this machine, compiled into it first, or shipped with the program.

Whichever way they come, they end as one library with C entry points `void(i64, i64, i64, i64)`, called through ctypes,
which releases the GIL. Nothing here imports Numba: compiling happens in a child process (see compile.py), whose memory
and settings stay out of ours.
"""

import ctypes
import importlib.util
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from edgellm.errors import KernelError
from edgellm.kernels import elf, objects
from edgellm.kernels.host import known_host
from edgellm.kernels.objects import KernelObject
from edgellm.kernels.targets import Target, target_for

Progress = Callable[[int, int, str], None]  # done, total, name of the kernel at work
Entry = Callable[[int, int, int, int], None]
ENTRY_TYPE = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)
ENTRY_POINTS = ("attend", "combine", "embed", "follow", "lead", "matmul", "norm", "read", "sample")


class LLVMImage:
    """An object file in memory, put there by LLVM: for systems and objects that elf.py does not know."""

    def __init__(self, code: bytes, names: Iterable[str]) -> None:
        """Errors: KernelError where the object file does not link."""
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        builder = llvm.JITLibraryBuilder().add_current_process().add_object_img(code)
        for name in names:
            builder.export_symbol(name)
        try:
            self._linker = llvm.create_lljit_compiler()
            self._linked = builder.link(self._linker, "edgellm-kernels")
        except RuntimeError as error:
            raise KernelError(
                f"compiled kernels do not link: {error}; remove the kernel cache and try again"
            ) from error
        self.addresses = {name: int(self._linked[name]) for name in names}


class Library:
    """Linked kernels of one target."""

    def __init__(self, target: Target, code: bytes, names: Iterable[str] = ENTRY_POINTS) -> None:
        """Errors: KernelError where the object file does not link."""
        self.target, names = target, list(names)
        self._image = _image(code, names)
        self.addresses = {name: self._image.addresses[name] for name in names}

    def entry(self, name: str) -> Entry:
        """An entry point, callable from Python without the GIL."""
        function: Entry = ENTRY_TYPE(self.addresses[name])
        return function


def _image(code: bytes, names: list[str]) -> elf.Image | LLVMImage:
    if elf.RUNS_HERE:
        try:
            return elf.Image(code)
        except KernelError as error:
            logging.getLogger(__name__).warning("%s; LLVM links them, which costs 50 MB", error)
    return LLVMImage(code, names)


def load(
    cache: Path, prebuilt: Path | None = None, *, isa: str | None = None, progress: Progress | None = None
) -> Library:
    """The kernels for this machine, or for a lesser instruction set that it has.

    Looks in the folder `cache` first; a miss compiles there, which takes seconds and is reported to `progress`. Where
    there is no compiler, the best that this machine has of the folder `prebuilt` is taken (see build.py).
    Errors: KernelError.
    """
    host = known_host(cache)
    target = target_for(isa, host)
    path = cache / objects.name_of(target)
    found = objects.read(path)
    if found is None and can_compile():
        found = compile_into(path, target, tune=target == host, progress=progress)
    elif found is None:
        found = _best(host, prebuilt, isa)
    return Library(*found)


def is_cached(cache: Path, *, isa: str | None = None) -> bool:
    """Whether `load` would find the kernels compiled."""
    return objects.read(cache / objects.name_of(target_for(isa, known_host(cache)))) is not None


def can_compile() -> bool:
    """A frozen binary has no interpreter to start, and may come without Numba, as an installation may."""
    return not getattr(sys, "frozen", False) and importlib.util.find_spec("numba") is not None


def _best(host: Target, prebuilt: Path | None, isa: str | None) -> KernelObject:
    """The most capable of the prebuilt kernels that the host can run, or those of one instruction set."""
    built = {}
    for path in sorted(prebuilt.glob("kernels-*.o")) if prebuilt else ():
        built[path.stem.removeprefix("kernels-").rpartition("-")[0]] = path
    for level in host.levels if isa is None else (isa,):
        if level in built:
            found = objects.read(built[level])
            if found is None:
                raise KernelError(f"{built[level]} is damaged; install the program again")
            return found
    raise KernelError(
        f"there is no compiler here, and no kernels for {isa or 'this processor'}: {host.cpu} has "
        f"{', '.join(host.levels)}; built ahead are {', '.join(built) or 'none'} (in {prebuilt or 'no folder'}); "
        "install edgellm with numba, or a program built for this processor"
    )


def compile_into(path: Path, target: Target, *, tune: bool = False, progress: Progress | None = None) -> KernelObject:
    """Compile the kernels of a target to a file, which appears whole or not at all.

    With `tune`, which is for the host only, the shapes of tiles are measured, else they follow a rule.
    Errors: KernelError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    objects.remove_abandoned(path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=objects.WORK_PREFIX) as folder:
        out = Path(folder) / "kernels.o"
        # -P: not from the working directory, which may hold another edgellm
        command = [sys.executable, "-P", "-m", "edgellm.kernels.compile", str(out), target.to_json()]
        with (
            (Path(folder) / "errors").open("w+") as errors,
            subprocess.Popen(
                [*command, "tune"] if tune else command, stdout=subprocess.PIPE, stderr=errors, text=True
            ) as child,
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
                version = objects.numba_version()
                raise KernelError(f"compiling the kernels failed: {last[0]}; numba {version} on {target.cpu}")
        made = objects.read(out)
        if made is None:
            raise KernelError(f"the compiled kernels in {path.parent} read back damaged; is the disk full or broken?")
        out.replace(path)
        return made
