"""Kernels from the cache: a warm start knows the processor and links the kernels without LLVM."""

import importlib.metadata
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgellm.kernels import elf, host, jit, objects
from edgellm.kernels.targets import host_target
from edgellm.kernels.units import own_units
from tests.edgellm.families.tiny_hybrid import UNIT
from tests.kernels.caches import link_kernels

pytestmark = pytest.mark.skipif(not elf.RUNS_HERE, reason="elsewhere LLVM links, and is asked for the processor")


def test_a_warm_start_does_without_llvm(kernel_cache: Path, library: jit.Library) -> None:
    code = f"""
import pathlib, sys
from edgellm.kernels import jit
from edgellm.kernels.units import own_units
from tests.edgellm.families.tiny_hybrid import UNIT
print(jit.load(pathlib.Path({str(kernel_cache)!r}), own_units()).target)
assert not {{"llvmlite", "numba"}} & set(sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == str(library.target)
    assert replace(library.target, measured=None) == host_target()


def test_another_processor_is_asked_again(kernel_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link_kernels(kernel_cache, tmp_path)
    asked = []
    ask = host._ask
    monkeypatch.setattr(host, "_ask", lambda: asked.append(host._processor_description()) or ask())
    for processor in ("flags: avx2", "flags: avx2", "flags: avx512f", "flags: avx2", "flags: avx512f"):
        monkeypatch.setattr(host, "_processor_description", lambda name=processor: name)
        assert replace(jit.load(tmp_path).target, measured=None) == host_target()
    assert asked == ["flags: avx2", "flags: avx512f"]
    for path in tmp_path.glob("host-*.json"):
        path.write_bytes(path.read_bytes()[:-1])
    assert replace(jit.load(tmp_path).target, measured=None) == host_target()
    assert asked[2:] == ["flags: avx512f"], "a damaged file counts for nothing"


def test_llvm_links_what_the_loader_refuses(
    kernel_cache: Path, library: jit.Library, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(elf, "_CALL", 99)
    linked = jit.load(kernel_cache, [*own_units(), UNIT])
    by_llvm = [image for image in linked._images if isinstance(image, jit.LLVMImage)]
    assert by_llvm and len(by_llvm) == len(caplog.messages)
    for message in caplog.messages:
        assert "unknown kind" in message and "LLVM links them" in message
    assert set(linked.addresses) == set(library.addresses)
    assert not set(linked.addresses.values()) & set(library.addresses.values())


def test_flags_of_the_system_tell_the_levels_that_llvm_finds() -> None:
    description = host._processor_description()
    assert description is not None
    found, known = host.described_host(description), host_target()
    assert (found.isa, found.levels, found.triple) == (known.isa, known.levels, known.triple)
    assert all(known.has(feature.removeprefix("+")) for feature in found.features.split(",") if feature)


@pytest.mark.parametrize(
    ("flags", "levels"),
    [
        ("fpu sse2 ssse3", ("plain",)),
        ("avx2 fma", ("plain",)),  # without f16c
        ("avx2 f16c fma", ("avx2", "plain")),
        ("avx2 f16c fma avx_vnni", ("avx-vnni", "avx2", "plain")),
        ("avx2 f16c fma avx512f avx512bw avx512vl", ("avx2", "plain")),
        ("avx2 f16c fma avx512f avx512bw avx512vl avx512_vnni", ("avx512-vnni", "avx2", "plain")),
    ],
)
def test_levels_follow_from_flags(flags: str, levels: tuple[str, ...]) -> None:
    found = host.described_host(f"vendor_id\t: x\nflags\t\t: {flags}\nmodel name\t: avx512_vnni\n")
    assert found.levels == levels and found.isa == levels[0]


@pytest.mark.parametrize("package", ["numba", "llvmlite", "numpy"])
def test_the_version_of_a_compiler_is_the_installed_one(package: str) -> None:
    assert objects.installed_version(package) == importlib.metadata.version(package)


def test_a_package_that_is_not_there_has_no_version() -> None:
    assert objects.installed_version("edgellm_is_nowhere") is None


def test_a_version_without_its_folder_of_metadata_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unheard_of").mkdir()
    (tmp_path / "unheard_of" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert objects.installed_version("unheard_of") is None
