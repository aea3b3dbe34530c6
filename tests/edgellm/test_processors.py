"""The number of threads follows the cores, the affinity mask and the control group, on faked /proc and /sys."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest

from edgellm.processors import available_processors

Machine = Callable[..., Path]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Fakes a machine: the core of each logical processor, the affinity mask, and files of control groups."""

    def make(cores: list[str], affinity: set[int], files: Mapping[str, str] | None = None) -> Path:
        for number, core in enumerate(cores):
            package, _, core_id = core.partition(":")
            topology = f"sys/devices/system/cpu/cpu{number}/topology"
            files = {**(files or {}), f"{topology}/physical_package_id": package, f"{topology}/core_id": core_id}
        for name, text in (files or {}).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text + "\n")
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: affinity, raising=False)
        return tmp_path

    return make


FOUR = ["0:0", "0:1", "1:0", "1:1"]  # two sockets of two cores


def test_two_threads_of_a_core_count_once(machine: Machine) -> None:
    found = available_processors(machine(["0:0", "0:1", "0:0", "0:1"], {0, 1, 2, 3}))
    assert (found.count, found.reason) == (2, "2 physical cores")


def test_cores_of_two_sockets_are_told_apart(machine: Machine) -> None:
    assert available_processors(machine(FOUR, {0, 1, 2, 3})).count == 4


def test_affinity_mask_counts_by_core(machine: Machine) -> None:
    found = available_processors(machine(["0:0", "0:0", "0:1", "0:1"], {0, 1}))
    assert (found.count, found.reason) == (1, "2 physical cores, 1 of them in the affinity mask")


@pytest.mark.parametrize(
    ("groups", "count"),
    [
        ({"cpu.max": "max 100000"}, 4),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"app/cpu.max": "300000 100000", "cpu.max": "100000 100000"}, 1),  # the group around it is tighter
        ({"app/service/cpu.max": "200000 100000", "app/cpu.max": "max 100000"}, 2),
        ({"other/cpu.max": "100000 100000"}, 4),  # not ours
    ],
)
def test_quota_of_version_2(machine: Machine, groups: Mapping[str, str], count: int) -> None:
    files = {f"sys/fs/cgroup/{name}": text for name, text in groups.items()}
    found = available_processors(machine(FOUR, {0, 1, 2, 3}, files | {"proc/self/cgroup": "0::/app/service"}))
    assert found.count == count


@pytest.mark.parametrize(("quota", "count"), [("-1", 4), ("200000", 2), ("10000", 1), ("900000", 4)])
@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize("shown", ["", "docker/abc/"])  # in a container, the host's path may lead nowhere
def test_quota_of_version_1(machine: Machine, mount: str, shown: str, quota: str, count: int) -> None:
    folder = f"sys/fs/cgroup/{mount}/{shown}"
    files = {
        "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/",
        f"{folder}cpu.cfs_quota_us": quota,
        f"{folder}cpu.cfs_period_us": "100000",
    }
    assert available_processors(machine(FOUR, {0, 1, 2, 3}, files)).count == count


def test_reason_names_the_quota(machine: Machine) -> None:
    files = {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}
    found = available_processors(machine(FOUR, {0, 1, 2, 3}, files))
    assert found.reason == "4 physical cores, control group quota of 1.5 processors"


def test_without_sys_the_cores_come_from_psutil(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 8)
    assert available_processors(machine([], {0, 1, 2})).count == 3
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: None)
    assert available_processors(machine([], {0, 1, 2})).count == 3


def test_this_machine() -> None:
    assert 1 <= available_processors().count <= (os.cpu_count() or 1)
