"""Processes that compile at once, or are killed while they do, leave a cache that holds whole kernels or none."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgellm.kernels import jit, objects
from edgellm.kernels.targets import host_target
from edgellm.kernels.units import CORE, kv_unit, weight_unit

ISA = (*host_target().levels[1:], "plain")[0]  # a lesser one, for which nothing is measured
UNITS = (CORE, weight_unit("int8"), kv_unit("bf16"))
LOAD = """
import sys
from pathlib import Path
from edgellm.kernels import jit
from edgellm.kernels.units import CORE, kv_unit, weight_unit
jit.load(Path(sys.argv[1]), (CORE, weight_unit("int8"), kv_unit("bf16")), isa=sys.argv[2])
"""


def start(cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", LOAD, str(cache), ISA], stderr=subprocess.PIPE, text=True)


def test_a_killed_compiler_leaves_nothing_that_is_loaded_and_two_at_once_end_well(tmp_path: Path) -> None:
    with start(tmp_path) as killed:
        while not list(tmp_path.glob(f"{objects.WORK_PREFIX}*")):
            assert killed.poll() is None
            time.sleep(0.05)
        time.sleep(1)
        killed.kill()
    assert not list(tmp_path.glob("*.o")) and not jit.is_cached(tmp_path, UNITS, isa=ISA)
    (abandoned,) = tmp_path.glob(f"{objects.WORK_PREFIX}*")
    with start(tmp_path) as first, start(tmp_path) as second:
        assert [first.communicate()[1], second.communicate()[1]] == ["", ""]
    assert jit.is_cached(tmp_path, UNITS, isa=ISA)
    left = {path for path in tmp_path.iterdir() if not path.name.startswith(("host-", "tuned-"))}
    assert left == {abandoned, *tmp_path.glob("*.o")} and len(left) == 1 + len(UNITS), "a file a unit"
    assert jit.load(tmp_path, UNITS, isa=ISA).target.isa == ISA


def test_what_a_killed_compiler_left_goes_after_an_hour(tmp_path: Path) -> None:
    young, old, kernels = (tmp_path / name for name in ("compiling-a", "compiling-b", "core-plain-0.o"))
    for folder in (young, old):
        folder.mkdir()
        (folder / "core.o").touch()
    kernels.touch()
    for path in (old, kernels):
        os.utime(path, (time.time() - 3700,) * 2)
    objects.remove_abandoned(tmp_path)
    assert set(tmp_path.iterdir()) == {young, kernels}


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:40] + b"x" + data[41:], lambda data: b""]
)
def test_a_damaged_file_counts_for_nothing(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "core.o"
    objects.write(path, objects.KernelObject(host_target(), ("add", "store"), b"code"))
    assert objects.read(path) == (host_target(), ("add", "store"), b"code")
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert objects.read(path) is None
