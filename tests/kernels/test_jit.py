"""Kernels from the cache: a warm start knows the processor and links the kernels without LLVM."""

import subprocess
import sys
from pathlib import Path

import pytest

from edgellm.kernels import elf, jit
from edgellm.kernels.targets import host_target

pytestmark = pytest.mark.skipif(not elf.RUNS_HERE, reason="elsewhere LLVM links, and is asked for the processor")


def test_a_warm_start_does_without_llvm(kernel_cache: Path, library: jit.Library) -> None:
    code = f"""
import pathlib, sys
from edgellm.kernels import jit
print(jit.load(pathlib.Path({str(kernel_cache)!r})).target)
assert not {{"llvmlite", "numba"}} & set(sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == str(host_target()) == str(library.target)


def test_another_processor_is_asked_again(kernel_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in kernel_cache.glob("kernels-*.o"):
        (tmp_path / path.name).symlink_to(path)
    asked = []
    ask = jit._ask_for_host
    monkeypatch.setattr(jit, "_ask_for_host", lambda: asked.append(jit.processor_description()) or ask())
    for processor in ("flags: avx2", "flags: avx2", "flags: avx512f", "flags: avx2", "flags: avx512f"):
        monkeypatch.setattr(jit, "processor_description", lambda name=processor: name)
        assert jit.load(tmp_path).target == host_target()
    assert asked == ["flags: avx2", "flags: avx512f"]
    for path in tmp_path.glob("host-*.json"):
        path.write_bytes(path.read_bytes()[:-1])
    assert jit.load(tmp_path).target == host_target()
    assert asked[2:] == ["flags: avx512f"], "a damaged file counts for nothing"


def test_llvm_links_what_the_loader_refuses(
    kernel_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(elf, "_CALL", 99)
    assert isinstance(jit.load(kernel_cache)._image, jit.LLVMImage)
    (message,) = caplog.messages
    assert "unknown kind" in message and "LLVM links them" in message
