"""What loading a model leaves as it was."""

import gc
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgellm
from edgellm.errors import OptionError


@pytest.fixture(params=[True, False], ids=["collecting", "not collecting"])
def collects(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the program lets garbage be collected."""
    (gc.enable if request.param else gc.disable)()
    yield request.param
    gc.enable()


def test_garbage_is_collected_after_loading_as_before(tiny_gguf: Path, collects: bool) -> None:
    with edgellm.load(tiny_gguf, threads=1):
        assert gc.isenabled() == collects
    with pytest.raises(OptionError, match="kv_memory"):
        edgellm.load(tiny_gguf, threads=1, kv_memory=1)
    assert gc.isenabled() == collects


def test_a_start_does_not_read_the_metadata_of_packages() -> None:
    """importlib.metadata and what it needs take 12 ms and 2 MB of every start."""
    code = "import sys, edgellm.apps.cli, edgellm.kernels.jit; print('importlib.metadata' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


def test_the_version_is_that_of_the_installation() -> None:
    assert edgellm.__version__ == importlib.metadata.version("edgellm")


def test_a_checkout_that_is_not_installed_says_what_to_do() -> None:
    """Without site-packages, and so without what an installation leaves there."""
    command = [sys.executable, "-S", "-c", "import edgellm"]
    done = subprocess.run(command, cwd=Path(edgellm.__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: edgellm is not installed: this is its source code")
    assert "`pip install -e .`" in done.stderr


def test_the_package_is_a_program_too() -> None:
    done = subprocess.run([sys.executable, "-m", "edgellm", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"edgellm {edgellm.__version__}\n"
