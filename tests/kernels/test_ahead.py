"""Kernels built ahead of time stand in where there is no compiler, with the same bits, and only where they can run."""

import sys
from pathlib import Path

import numpy as np
import pytest

from edgellm.converters.on_the_fly import pack_on_the_fly
from edgellm.engine.model import Model
from edgellm.errors import KernelError
from edgellm.kernels import build, jit, objects
from edgellm.kernels.jit import Library
from edgellm.kernels.targets import Target, generic_target, host_target
from edgellm.packed.read import open_packed

pytestmark = pytest.mark.skipif("avx2" not in host_target().levels, reason="builds and runs kernels for AVX2")
TOKENS = list(range(40))
OLD_MACHINE = Target("plain", host_target().triple, "x86-64", "+sse2")


@pytest.fixture(scope="module")
def prebuilt(pytestconfig: pytest.Config) -> Path:
    """Two levels, in a folder of their own that outlives the run: where AVX2 is the best, building it in the kernel
    cache would drop the host's own kernels.
    """
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("prebuilt")
    for level in ("avx2", "plain"):
        build.build(folder, level)
    return folder


@pytest.fixture
def _frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)


def logits(library: Library, gguf: Path, folder: Path) -> np.ndarray:
    packed = open_packed(pack_on_the_fly(gguf, folder))
    with Model(packed, library, context=64, threads=1, processors=1, kv_cache_dtype="bf16") as model:
        return model.logits(TOKENS)


@pytest.mark.usefixtures("_frozen")
@pytest.mark.parametrize("isa", [None, "plain"])
def test_prebuilt_kernels_compute_the_bits_of_those_compiled_here(
    prebuilt: Path, library: Library, tiny_gguf: Path, tmp_path: Path, isa: str | None
) -> None:
    found = jit.load(tmp_path / "cache", prebuilt, isa=isa)
    assert found.target == generic_target(isa or "avx2", host_target().triple), "the best that is there"
    assert np.array_equal(logits(found, tiny_gguf, tmp_path), logits(library, tiny_gguf, tmp_path))
    assert not list(tmp_path.glob("cache/kernels-*"))


@pytest.mark.usefixtures("_frozen")
def test_kernels_compiled_for_this_very_machine_come_first(
    prebuilt: Path, kernel_cache: Path, library: Library
) -> None:
    assert jit.load(kernel_cache, prebuilt).target == library.target


def test_an_installation_without_numba_takes_prebuilt_kernels(
    prebuilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    assert jit.load(tmp_path, prebuilt).target.isa == "avx2"


@pytest.mark.usefixtures("_frozen")
def test_a_level_that_the_machine_lacks_is_never_loaded(
    prebuilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jit, "known_host", lambda cache: OLD_MACHINE)
    assert jit.load(tmp_path, prebuilt).target.isa == "plain"
    (avx2,) = prebuilt.glob("kernels-avx2-*.o")
    (tmp_path / avx2.name).write_bytes(avx2.read_bytes())
    with pytest.raises(KernelError, match=r"x86-64 has plain; built ahead are avx2 \(in .*\); install"):
        jit.load(tmp_path, tmp_path)
    with pytest.raises(KernelError, match="does not have the instruction set 'avx2'; it has: plain"):
        jit.load(tmp_path, prebuilt, isa="avx2")


@pytest.mark.usefixtures("_frozen")
def test_without_prebuilt_kernels_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"no compiler here.*built ahead are none \(in no folder\); install"):
        jit.load(tmp_path)


@pytest.mark.usefixtures("_frozen")
def test_damaged_kernels_are_not_passed_over_in_silence(prebuilt: Path, tmp_path: Path) -> None:
    for path in prebuilt.glob("kernels-*.o"):
        data = path.read_bytes()
        (tmp_path / path.name).write_bytes(data[:-1] if "avx2" in path.name else data)
    with pytest.raises(KernelError, match=r"kernels-avx2-\w+\.o is damaged; install the program again"):
        jit.load(tmp_path / "cache", tmp_path)


def test_building_again_compiles_nothing_and_drops_what_is_older(
    prebuilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (plain,) = prebuilt.glob("kernels-plain-*.o")
    (tmp_path / plain.name).write_bytes(plain.read_bytes())
    old, other = tmp_path / f"kernels-plain-{'0' * objects.IDENTITY_DIGITS}.o", tmp_path / "kernels-plain-notes.o"
    old.touch()
    other.touch()
    monkeypatch.setattr(jit, "compile_into", None)
    monkeypatch.setattr(sys, "argv", ["build", str(tmp_path), "plain"])
    assert build.main() == 0
    assert capsys.readouterr().out == f"{tmp_path / plain.name}\n"
    assert not old.exists() and other.exists()


def test_an_unknown_level_is_an_error_that_names_the_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["build", str(tmp_path), "avx1024"])
    assert build.main() == 1
    error = capsys.readouterr().err
    assert "'avx1024' is no level" in error and "avx2" in error and "plain" in error
