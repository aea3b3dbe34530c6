"""What all tests share: a home of their own, and kernels compiled once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import edgellm
from edgellm.engine.model import Model
from edgellm.kernels import jit
from edgellm.kernels.units import own_units
from tests.edgellm.families.tiny_hybrid import UNIT
from tests.tiny import make_tiny_gguf


def make_home(folder: Path, kernels: Path) -> Path:
    """An EDGELLM_HOME whose kernel cache is the shared one, so that no test waits for the compiler again."""
    (folder / "cache").mkdir(parents=True)
    (folder / "cache" / "kernels").symlink_to(kernels, target_is_directory=True)
    return folder


@pytest.fixture(scope="session")
def kernel_cache(pytestconfig: pytest.Config) -> Path:
    """Outlives the run; names in it depend on every kernel source, so what is found there is never stale."""
    assert pytestconfig.cache is not None
    return pytestconfig.cache.mkdir("kernels")


@pytest.fixture(scope="session", autouse=True)
def _session_home(tmp_path_factory: pytest.TempPathFactory, kernel_cache: Path) -> Iterator[None]:
    home = make_home(tmp_path_factory.mktemp("session") / "home", kernel_cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGELLM_HOME", str(home))
        yield


@pytest.fixture
def home(tmp_path: Path, kernel_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty EDGELLM_HOME for one test."""
    folder = make_home(tmp_path / "home", kernel_cache)
    monkeypatch.setenv("EDGELLM_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def library(kernel_cache: Path) -> jit.Library:
    """Kernels for this machine, those of the toy hybrid among them."""
    return jit.load(kernel_cache, [*own_units(), UNIT])


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", body="Q4_1")


@pytest.fixture(scope="session")
def tiny_model(tiny_gguf: Path, _session_home: None) -> Iterator[Model]:
    """A random model of 2 layers, on 2 threads."""
    with edgellm.load(tiny_gguf, threads=2) as model:
        yield model
