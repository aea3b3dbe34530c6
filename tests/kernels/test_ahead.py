"""Kernels built ahead of time stand in where there is no compiler, with the same bits, and only where they can run."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgellm.backends.cpu.backend import CPUBackend
from edgellm.converters.on_the_fly import pack_on_the_fly
from edgellm.engine.model import Model
from edgellm.errors import KernelError
from edgellm.kernels import build, jit, objects
from edgellm.kernels.jit import Library
from edgellm.kernels.targets import Target, generic_target, host_target
from edgellm.kernels.units import CORE, Unit, own_units
from edgellm.packed.read import open_packed

pytestmark = pytest.mark.skipif("avx2" not in host_target().levels, reason="builds and runs kernels for AVX2")
TOKENS = list(range(40))
UNITS = own_units()
OLD_MACHINE = Target("plain", host_target().triple, "x86-64", "+sse2")
STANDALONE = """
import sys
sys.modules.update({"numba": None, "llvmlite": None})
sys._MEIPASS = sys.argv[1]
import edgellm
with edgellm.load(sys.argv[2], context=64, threads=1) as model:
    sys.stdout.buffer.write(model.isa.encode() + b" " + model.logits(list(range(40))).tobytes())
"""


@pytest.fixture(scope="module")
def prebuilt(pytestconfig: pytest.Config) -> Path:
    """Two levels, in a folder named as a program carries it, which outlives the run.

    Not in the kernel cache: where AVX2 is the best, building it there would drop the host's own kernels.
    """
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("prebuilt")
    for level in ("avx2", "plain"):
        build.build(folder, level)
    return folder


@pytest.fixture
def _frozen(prebuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a standalone program that carries `prebuilt`."""
    monkeypatch.setattr(sys, "_MEIPASS", str(prebuilt.parent), raising=False)


def logits(library: Library, gguf: Path, folder: Path) -> np.ndarray:
    packed = open_packed(pack_on_the_fly(gguf, folder))
    with Model(packed, CPUBackend(library, threads=1, processors=1), context=64) as model:
        return model.logits(TOKENS)


def copy_kernels(source: Path, folder: Path, pattern: str) -> None:
    for path in source.glob(pattern):
        (folder / path.name).write_bytes(path.read_bytes())


@pytest.mark.usefixtures("_frozen")
@pytest.mark.parametrize("isa", [None, "plain"])
def test_prebuilt_kernels_compute_the_bits_of_those_compiled_here(
    prebuilt: Path, library: Library, tiny_gguf: Path, tmp_path: Path, isa: str | None
) -> None:
    assert objects.prebuilt_folder() == prebuilt
    found = jit.load(tmp_path / "cache", UNITS, prebuilt, isa=isa)
    assert found.target == generic_target(isa or "avx2", host_target().triple), "the best that is there"
    assert np.array_equal(logits(found, tiny_gguf, tmp_path), logits(library, tiny_gguf, tmp_path))
    assert not list(tmp_path.glob("cache/*.o"))


def test_a_program_without_numba_and_llvm_computes_the_same_bits(
    prebuilt: Path, library: Library, tiny_gguf: Path, tmp_path: Path
) -> None:
    """With what it carries alone, in a process of its own."""
    packed = pack_on_the_fly(tiny_gguf, tmp_path)
    command = [sys.executable, "-c", STANDALONE, str(prebuilt.parent), str(packed)]
    home = {"EDGELLM_HOME": str(tmp_path / "home")}
    isa, _, found = subprocess.run(command, check=True, capture_output=True, env=os.environ | home).stdout.partition(
        b" "
    )
    assert isa == b"avx2"
    assert found == logits(library, tiny_gguf, tmp_path).tobytes()


@pytest.mark.usefixtures("_frozen")
def test_kernels_compiled_for_this_very_machine_come_first(
    prebuilt: Path, kernel_cache: Path, library: Library
) -> None:
    assert jit.load(kernel_cache, UNITS, prebuilt).target == library.target


@pytest.mark.usefixtures("_frozen")
def test_what_a_standalone_program_finds_out_of_the_processor_is_not_kept(prebuilt: Path, tmp_path: Path) -> None:
    """An installation with the same cache knows more."""
    jit.load(tmp_path, UNITS, prebuilt)
    assert not list(tmp_path.iterdir())


def test_an_installation_without_numba_takes_prebuilt_kernels(
    prebuilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    assert jit.load(tmp_path, UNITS, prebuilt).target.isa == "avx2"


@pytest.mark.usefixtures("_frozen")
def test_a_level_that_the_machine_lacks_is_never_loaded(
    prebuilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jit, "known_host", lambda cache: OLD_MACHINE)
    assert jit.load(tmp_path, UNITS, prebuilt).target.isa == "plain"
    copy_kernels(prebuilt, tmp_path, "*-avx2-*.o")
    with pytest.raises(KernelError, match=r"x86-64 has plain; built ahead are avx2 \(in .*\); install"):
        jit.load(tmp_path, UNITS, tmp_path)
    with pytest.raises(KernelError, match="does not have the instruction set 'avx2'; it has: plain"):
        jit.load(tmp_path, UNITS, prebuilt, isa="avx2")


@pytest.mark.usefixtures("_frozen")
def test_a_level_that_lacks_a_unit_is_passed_over(prebuilt: Path, tmp_path: Path) -> None:
    copy_kernels(prebuilt, tmp_path, "*.o")
    (missing,) = tmp_path.glob("kv_int8-avx2-*.o")
    missing.unlink()
    assert jit.load(tmp_path / "cache", UNITS, tmp_path).target.isa == "plain"
    assert jit.load(tmp_path / "cache", (CORE,), tmp_path).target.isa == "avx2"
    familys = Unit("gates", tmp_path / "gates.py")
    with pytest.raises(KernelError, match="no compiler here"):
        jit.load(tmp_path / "cache", (*UNITS, familys), tmp_path)


def test_without_prebuilt_kernels_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_MEIPASS", str(tmp_path), raising=False)
    with pytest.raises(KernelError, match=r"no compiler here.*built ahead are none \(in no folder\); install"):
        jit.load(tmp_path)
    with pytest.raises(KernelError, match=r"no compiler here.*built ahead are none \(in .*prebuilt\); install"):
        jit.load(tmp_path, UNITS, objects.prebuilt_folder())


@pytest.mark.usefixtures("_frozen")
def test_damaged_kernels_are_not_passed_over_in_silence(prebuilt: Path, tmp_path: Path) -> None:
    copy_kernels(prebuilt, tmp_path, "*.o")
    for path in tmp_path.glob("*-avx2-*.o"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(KernelError, match=r"core-avx2-\w+\.o is damaged; install the program again"):
        jit.load(tmp_path / "cache", UNITS, tmp_path)


def test_building_again_compiles_nothing_and_drops_what_is_older(
    prebuilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_kernels(prebuilt, tmp_path, "*-plain-*.o")
    built = [next(tmp_path.glob(f"{unit.name}-plain-*.o")) for unit in UNITS]
    old, other = tmp_path / f"int4-plain-{'0' * objects.IDENTITY_DIGITS}.o", tmp_path / "int4-plain-notes.o"
    old.touch()
    other.touch()
    monkeypatch.setattr(jit, "compile_into", None)
    monkeypatch.setattr(sys, "argv", ["build", str(tmp_path), "plain"])
    assert build.main() == 0
    assert capsys.readouterr().out == "".join(f"{path}\n" for path in built)
    assert not old.exists() and other.exists() and all(path.exists() for path in built)
    assert (tmp_path / objects.SOURCES).read_bytes() == (prebuilt / objects.SOURCES).read_bytes()


def test_building_again_compiles_what_is_missing(
    prebuilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_kernels(prebuilt, tmp_path, "*-plain-*.o")
    (missing,) = tmp_path.glob("int8-plain-*.o")
    missing.unlink()
    compiled: list[Unit] = []
    monkeypatch.setattr(jit, "compile_into", lambda folder, target, units, progress: compiled.extend(units))
    assert missing in build.build(tmp_path, "plain")
    assert [unit.name for unit in compiled] == ["int8"]


def test_an_unknown_level_is_an_error_that_names_the_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["build", str(tmp_path), "avx1024"])
    assert build.main() == 1
    error = capsys.readouterr().err
    assert "isa 'avx1024' must be one of" in error and "avx2" in error and "plain" in error
