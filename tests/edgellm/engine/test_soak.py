"""The soak of benchmarks/soak.py, in small."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from edgellm import Model

SOAK = Path(__file__).parents[3] / "benchmarks" / "soak.py"


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    spec = importlib.util.spec_from_file_location("soak", SOAK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_many_requests_leave_nothing_behind(model: Model, soak: ModuleType) -> None:
    report = soak.soak(model, 150)
    assert report.num_requests == 150
    assert report.num_free_blocks == report.num_blocks
    assert report.end_mb - report.warm_mb < 20
