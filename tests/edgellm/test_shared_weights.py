"""Processes that run the same model share its weights: memory holds them once."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgellm.converters.on_the_fly import pack_on_the_fly
from edgellm.packed.read import open_packed
from tests.tiny import make_tiny_gguf

RUN = """
import sys
import edgellm
model = edgellm.load(sys.argv[1], threads=1)
model.logits([1, 2, 3])
model.packed.weights["embedding"].parts["codes"].sum()
print("ready", flush=True)
sys.stdin.read()
model.close()
"""


def mapping(process: int, path: Path) -> dict[str, int]:
    """Bytes of a process's mappings of a file, by kind."""
    found: dict[str, int] = {}
    for part in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path(f"/proc/{process}/smaps").read_text(), flags=re.M):
        if str(path) in part.partition("\n")[0]:
            for name, kilobytes in re.findall(r"^(\w+): +(\d+) kB$", part, flags=re.M):
                found[name] = found.get(name, 0) + 1024 * int(kilobytes)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_processes_hold_the_weights_once(tmp_path: Path) -> None:
    gguf = make_tiny_gguf(tmp_path / "wide.gguf", layers=4, width=512, heads=16, ffn=1536, body="Q8_0")
    path = pack_on_the_fly(gguf, tmp_path)
    packed = open_packed(path)
    weights = sum(weight.nbytes for weight in packed.weights.values())
    packed.close()
    assert weights > 10_000_000
    with path.open("rb") as file:
        os.fsync(file.fileno())  # clean pages only
    command = [sys.executable, "-c", RUN, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as first, subprocess.Popen(command, **pipes) as second:
        for process in (first, second):
            assert process.stdout.readline() == "ready\n"
        for found in [mapping(process.pid, path) for process in (first, second)]:
            assert found["Shared_Clean"] >= 0.99 * weights, found
            assert found["Private_Dirty"] == 0 and found["Private_Clean"] < 0.01 * weights, found
        for process in (first, second):
            process.stdin.close()
