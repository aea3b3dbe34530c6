"""edgellm doctor tells what the runtime would use."""

import json
from pathlib import Path

import numpy as np
import pytest

from edgellm.inspect import bandwidth
from edgellm.kernels import jit
from edgellm.kernels.targets import host_target
from edgellm.processors import available_processors
from tests.apps.conftest import Run


@pytest.fixture(autouse=True)
def _fast_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "BUFFER_BYTES", 1 << 22)


def test_json(run: Run, tiny: str, home: Path) -> None:
    found = json.loads(run("doctor", "--json").out)
    assert found["isa"] == host_target().isa
    assert found["threads"] == available_processors().count
    assert found["models_folder"] == str(home / "models")
    assert found["cache_folder"] == str(home / "cache")
    assert found["models"] == 1
    assert found["packages"]["numpy"] == np.__version__
    assert 0 < found["available_memory_bytes"] <= found["memory_bytes"]
    assert found["read_bandwidth_bytes_per_second"] > 0
    assert found["kernels_choice"].startswith("tile ") and found["kernels_choice_was_measured"] is True


def test_kernels_are_found_once_they_are_compiled(run: Run, home: Path) -> None:
    assert json.loads(run("doctor", "--json").out)["kernels_were_compiled"] is True
    kernels = home / "cache" / "kernels"
    compiled = [
        path for name in ("core-*.o", "tuned-*.json") for path in kernels.resolve().glob(name)
    ]  # of older sources as well
    kernels.unlink()  # the link to the shared cache
    kernels.mkdir()
    assert not jit.is_cached(kernels)
    for path in compiled:
        (kernels / path.name).write_bytes(path.read_bytes()[:-1])
    assert not jit.is_cached(kernels), "a damaged file counts for nothing"
    for path in compiled:
        (kernels / path.name).write_bytes(path.read_bytes())
    assert jit.is_cached(kernels)


def test_text_for_people(run: Run) -> None:
    found = run("doctor")
    assert found.code == 0 and found.err == ""
    assert available_processors().reason in found.out
