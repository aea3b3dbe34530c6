"""Which processor this is, without LLVM in our memory: asked in a process of its own, once, and kept in the cache.

A frozen program, which need not carry LLVM, goes by what the system says.
"""

import contextlib
import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from edgellm.errors import KernelError
from edgellm.kernels import elf, objects
from edgellm.kernels.targets import X86_LEVELS, Target, from_json, host_target


def known_host(cache: Path) -> Target:
    """`host_target()`, kept in the folder `cache` from when it was asked first. Errors: KernelError."""
    description = _processor_description()
    if description is None or not elf.RUNS_HERE:
        return host_target()
    path = cache / f"host-{objects.identity(description)}.json"
    known = objects.read_checked(path)
    if known is not None:
        return from_json(known)
    if objects.is_frozen():  # not kept, since an installation that shares the cache knows more
        return described_host(description)
    host = _ask()
    with contextlib.suppress(OSError):  # a folder that we may only read
        cache.mkdir(parents=True, exist_ok=True)
        objects.write_checked(path, host.to_json().encode())
    return host


def described_host(description: str) -> Target:
    """An x86-64 processor of Linux by its flags in /proc/cpuinfo, as far as the levels of X86_LEVELS go."""
    found = re.search(r"^flags\s*:(.*)$", description, re.MULTILINE)
    flags = found[1].replace("_", "").split() if found else []  # as LLVM writes those that a level needs
    known = dict.fromkeys(feature for _, needs in X86_LEVELS.values() for feature in needs)
    features = ",".join(f"+{feature}" for feature in known if feature in flags)
    target = Target("plain", "x86_64-unknown-linux-gnu", "x86-64", features)
    return replace(target, isa=target.levels[0])


def write_host() -> None:
    """`host_target()` as JSON to standard output."""
    sys.stdout.write(host_target().to_json())


def _ask() -> Target:
    """`host_target()`, in a process that takes LLVM's memory with it."""
    command = [sys.executable, "-P", "-c", "from edgellm.kernels import host; host.write_host()"]
    try:
        return from_json(subprocess.run(command, check=True, capture_output=True).stdout)
    except (subprocess.CalledProcessError, json.JSONDecodeError) as error:
        said = getattr(error, "stderr", b"") or b""
        last = said.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise KernelError(f"the processor cannot be asked for what it has: {last[0]}") from error


def _processor_description() -> str | None:
    """What the system says of the processor, as far as it stays the same; None where it does not say."""
    try:
        with Path("/proc/cpuinfo").open() as file:
            lines = list(itertools.takewhile(str.strip, file))  # of the first processor
    except OSError:
        return None
    stable = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")
    return "".join(line for line in lines if line.partition(":")[0].strip() in stable) or None
