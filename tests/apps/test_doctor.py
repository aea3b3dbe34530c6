"""edgellm doctor tells what the runtime would use."""

import json
from pathlib import Path

import numpy as np
import pytest

from edgellm.kernels.targets import host_target
from edgellm.model import bandwidth
from edgellm.threads import available_processors
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


def test_kernels_are_found_once_they_are_compiled(run: Run, home: Path) -> None:
    (home / "cache" / "kernels").unlink()  # the link to the shared cache
    assert json.loads(run("doctor", "--json").out)["kernels_compiled"] is False
    (home / "cache" / "kernels").mkdir()
    (home / "cache" / "kernels" / f"kernels-{host_target().isa}-0123.o").touch()
    assert json.loads(run("doctor", "--json").out)["kernels_compiled"] is True


def test_text_for_people(run: Run) -> None:
    found = run("doctor")
    assert found.code == 0 and found.err == ""
    assert available_processors().reason in found.out
