"""Kernels ready to call: from the cache of this machine, compiled into it first, or shipped with the program.

Whichever way they come, they end as one library with C entry points of int64 arguments; those that Python calls are
`void(i64, i64, i64, i64)`, called through ctypes, which releases the GIL. Nothing here imports Numba: compiling happens
in a child process (see compile.py), whose memory and settings stay out of ours.
"""

import ctypes
import importlib.util
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path

from edgellm.errors import KernelError
from edgellm.kernels import elf, objects
from edgellm.kernels.host import known_host
from edgellm.kernels.objects import KernelObject
from edgellm.kernels.targets import Target, from_json, target_for
from edgellm.kernels.units import CORE, Unit

Progress = Callable[[int, int, str], None]  # done, total, name of the kernel at work
Entry = Callable[[int, int, int, int], None]
ENTRY_TYPE = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)


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

    def __init__(self, target: Target, objects: Iterable[KernelObject]) -> None:
        """Errors: KernelError where an object file does not link."""
        self.target = target
        self._images = [_image(kernels.code, kernels.names) for kernels in objects]
        self.addresses = {name: at for image in self._images for name, at in image.addresses.items()}

    def entry(self, name: str) -> Entry:
        """An entry point of four words, callable from Python without the GIL."""
        function: Entry = ENTRY_TYPE(self.addresses[name])
        return function


def _image(code: bytes, names: Iterable[str]) -> elf.Image | LLVMImage:
    if elf.RUNS_HERE:
        try:
            return elf.Image(code)
        except KernelError as error:
            logging.getLogger(__name__).warning("%s; LLVM links them, which costs 50 MB", error)
    return LLVMImage(code, names)


def load(
    cache: Path,
    units: Seq[Unit] = (CORE,),
    prebuilt: Path | None = None,
    *,
    isa: str | None = None,
    progress: Progress | None = None,
) -> Library:
    """The kernels of some units for this machine, or for a lesser instruction set that it has.

    Looks in the folder `cache` first; a miss compiles there, which takes seconds and is reported to `progress`. Where
    there is no compiler, the best that this machine has of the folder `prebuilt` is taken (see build.py).
    Errors: KernelError.
    """
    host = known_host(cache)
    target = target_for(isa, host)
    tune = target == host and can_compile()
    if target == host and (tuned := objects.read_tuned(cache, host)):
        target = tuned
        tune = False
    found = {unit: objects.read(cache / objects.name_of(unit, target)) for unit in units}
    missing = [unit for unit, kernels in found.items() if kernels is None]
    if missing and can_compile():
        if tune:
            missing = list(units)
            found = {}
        found |= compile_into(cache, target, missing, tune=tune, progress=progress)
    elif missing:
        found = dict(_best(host, units, prebuilt, isa))
    kernels = [kernels for kernels in found.values() if kernels is not None]
    return Library(kernels[0].target, kernels)


def is_cached(cache: Path, units: Seq[Unit] = (CORE,), *, isa: str | None = None) -> bool:
    """Whether `load` would find the kernels compiled."""
    host = known_host(cache)
    target = target_for(isa, host)
    if target == host:
        target = objects.read_tuned(cache, host) or host
    return all(objects.read(cache / objects.name_of(unit, target)) is not None for unit in units)


def can_compile() -> bool:
    """A frozen binary has no interpreter to start, and may come without Numba, as an installation may."""
    return not objects.is_frozen() and importlib.util.find_spec("numba") is not None


def _best(host: Target, units: Seq[Unit], prebuilt: Path | None, isa: str | None) -> Mapping[Unit, KernelObject]:
    """The most capable of the prebuilt kernels that the host can run, or those of one instruction set."""
    built: dict[str, dict[str, Path]] = {}
    for path in sorted(prebuilt.glob("*.o")) if prebuilt else ():
        unit, _, level = path.stem.rpartition("-")[0].partition("-")
        built.setdefault(level, {})[unit] = path
    for level in host.levels if isa is None else (isa,):
        if level in built and all(unit.name in built[level] for unit in units):
            return {unit: _sound(built[level][unit.name]) for unit in units}
    raise KernelError(
        f"there is no compiler here, and no kernels for {isa or 'this processor'}: {host.cpu} has "
        f"{', '.join(host.levels)}; built ahead are {', '.join(built) or 'none'} (in {prebuilt or 'no folder'}); "
        "install edgellm with numba, or a program built for this processor"
    )


def _sound(path: Path) -> KernelObject:
    found = objects.read(path)
    if found is None:
        raise KernelError(f"{path} is damaged; install the program again")
    return found


def compile_into(
    cache: Path, target: Target, units: Seq[Unit], *, tune: bool = False, progress: Progress | None = None
) -> dict[Unit, KernelObject]:
    """Compile units for a target into a folder, where each file appears whole or not at all.

    With `tune`, which is for the host only, the shapes of tiles are measured, else they follow a rule.
    Errors: KernelError.
    """
    cache.mkdir(parents=True, exist_ok=True)
    objects.remove_abandoned(cache)
    with tempfile.TemporaryDirectory(dir=cache, prefix=objects.WORK_PREFIX) as work:
        folder = Path(work)
        _run_compiler(folder, target, units, tune, progress)
        if tune:
            target = from_json((folder / "tuned.json").read_bytes())
        made = {}
        for unit in units:
            found = objects.read(folder / f"{unit.name}.o")
            if found is None:
                raise KernelError(f"the compiled kernels in {cache} read back damaged; is the disk full or broken?")
            (folder / f"{unit.name}.o").replace(cache / objects.name_of(unit, target))
            made[unit] = found
        if tune:  # last: who reads it finds the kernels that it names
            objects.write_checked(cache / objects.tuned_name(replace(target, measured=None)), target.to_json().encode())
        return made


def _run_compiler(folder: Path, target: Target, units: Seq[Unit], tune: bool, progress: Progress | None) -> None:
    """Let a child process leave <unit>.o of all units in a folder, and tuned.json where it is to tune."""
    named = json.dumps([[unit.name, str(unit.source)] for unit in units])
    # -P: not from the working directory, which may hold another edgellm
    command = [sys.executable, "-P", "-m", "edgellm.kernels.compile", str(folder), target.to_json(), named]
    with (
        (folder / "errors").open("w+") as errors,
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
            version = objects.installed_version("numba")
            raise KernelError(f"compiling the kernels failed: {last[0]}; numba {version} on {target.cpu}")
