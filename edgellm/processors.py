"""How many threads are worth starting: the physical cores that this process may really use.

A second thread on a core shares its dot-product unit, so it adds nothing but barriers; a thread beyond the affinity
mask or the control group's quota is put to sleep while the others wait for it.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path("/")


@dataclass(frozen=True)
class Processors:
    """What this process may use of the machine."""

    cores: int  # physical cores of the machine
    allowed_cores: int  # physical cores among the processors of the affinity mask
    quota: float | None  # processors' worth of time that the control group grants; None for no limit

    @property
    def count(self) -> int:
        """Threads worth starting, at least 1."""
        quota = self.allowed_cores if self.quota is None else math.floor(self.quota)
        return max(1, min(self.allowed_cores, quota))

    @property
    def reason(self) -> str:
        """Why it is that many, for people."""
        parts = [f"{self.cores} physical {'core' if self.cores == 1 else 'cores'}"]
        if self.allowed_cores < self.cores:
            parts.append(f"{self.allowed_cores} of them in the affinity mask")
        if self.quota is not None:
            parts.append(f"control group quota of {self.quota:g} processors")
        return ", ".join(parts)


def available_processors(root: Path = ROOT) -> Processors:
    """Looks at the affinity mask, the cores behind it and the quota; /proc and /sys are read under `root`."""
    affinity = _affinity()
    siblings = {processor: _core(processor, root) for processor in _listed(root)}
    if affinity <= siblings.keys():
        cores = len(set(siblings.values()))
        allowed = len({siblings[processor] for processor in affinity})
    else:  # not Linux, or a sandbox without /sys
        cores = psutil.cpu_count(logical=False) or len(affinity)
        allowed = min(cores, len(affinity))
    return Processors(cores, allowed, _quota(root))


def _affinity() -> set[int]:
    """Numbers of the logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _listed(root: Path) -> Iterator[int]:
    for folder in (root / "sys/devices/system/cpu").glob("cpu[0-9]*"):
        if (folder / "topology/core_id").exists():  # absent for a processor that is switched off
            yield int(folder.name.removeprefix("cpu"))


def _core(processor: int, root: Path) -> tuple[str, str]:
    """Names the physical core of a logical processor."""
    topology = root / f"sys/devices/system/cpu/cpu{processor}/topology"
    return _read(topology / "physical_package_id"), _read(topology / "core_id")


def _quota(root: Path) -> float | None:
    """The least quota of the process's control group and the groups around it, in processors; None for no limit."""
    quotas: list[float] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:  # version 2
            quotas += _quotas_v2(root / "sys/fs/cgroup", path)
        elif "cpu" in controllers.split(","):
            for mount in ("cpu", controllers):
                quotas += _quotas_v1(root / "sys/fs/cgroup" / mount, path)
    return min(quotas, default=None)


def _quotas_v2(mount: Path, path: str) -> Iterator[float]:
    for group in _groups(mount, path):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if quota.isdecimal():  # not "max"
            yield int(quota) / int(period)


def _quotas_v1(mount: Path, path: str) -> Iterator[float]:
    for group in _groups(mount, path):
        quota = _read(group / "cpu.cfs_quota_us")
        period = _read(group / "cpu.cfs_period_us")
        if quota.isdecimal():  # not "-1"
            yield int(quota) / int(period)


def _groups(mount: Path, path: str) -> Iterator[Path]:
    """The group at `path` and those around it. In a container the path may be the host's: then only the mount is."""
    group = mount / path.lstrip("/")
    yield group
    while group != mount:
        group = group.parent
        yield group


def _read(path: Path) -> str:
    """The text of a small file, empty where there is none to read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
