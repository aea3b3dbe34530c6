"""A model so small that a step takes a fraction of a millisecond, and a count of its steps."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import edgellm
from edgellm import Model
from edgellm.backends.base import Rows
from edgellm.backends.cpu.runner import CPURunner
from tests.edgellm.engine.requests import CONTEXT
from tests.tiny import make_tiny_gguf


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_gguf(tmp_path_factory.mktemp("engine") / "tiny.gguf", layers=1)


on_both_backends = pytest.mark.parametrize("backend", ["cpu", "naive"])


@pytest.fixture
def backend() -> str:
    """What a test's model runs on, unless the test is `on_both_backends`."""
    return "cpu"


@pytest.fixture
def model(path: Path, backend: str, _session_home: None) -> Iterator[Model]:
    """For one test; at its end all memory must be free, and the books balance."""
    with edgellm.load(path, device=backend, threads=2, context=CONTEXT) as model:
        free = model.num_free_blocks
        yield model
        assert model.num_free_blocks == free, "somebody still holds memory"
        model.check_integrity()


Step = list[Rows]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """The steps that are computed from now on."""
    computed: list[Step] = []
    before_steps(monkeypatch, lambda batch: computed.append(list(batch)))
    return computed


def before_steps(monkeypatch: pytest.MonkeyPatch, act: Callable[[list[Rows]], object]) -> None:
    """Call `act` with what a step is to compute, before it does."""
    run = CPURunner.start

    def wrapped(self: CPURunner, batch: list[Rows], **options: Any) -> None:
        act(batch)
        run(self, batch, **options)

    monkeypatch.setattr(CPURunner, "start", wrapped)
