"""Runs commands in this process."""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgellm.apps.cli import main


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: Path) -> Run:
    """run("models", "--json", stdin=b"") -> Result, with an EDGELLM_HOME of its own."""

    def command(*argv: str | Path, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            code = main([str(word) for word in argv])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else -1
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert "\x1b" not in out + err  # no colours in a pipe
        return Result(code, out, err)

    return command


@pytest.fixture
def tiny(run: Run, tiny_gguf: Path) -> str:
    """A model in the store, and its name."""
    assert run("pull", tiny_gguf, "--name", "tiny").code == 0
    return "tiny"
