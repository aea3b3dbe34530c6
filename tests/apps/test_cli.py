"""What becomes of bad command lines and bad files: one clear line and an exit code, never a traceback."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgellm
from edgellm.apps.cli import SUMMARIES
from edgellm.store import Store
from tests.apps.conftest import Run

LAUNCH = [sys.executable, "-c", "import sys; from edgellm.apps.cli import main; sys.exit(main())"]


def test_version(run: Run) -> None:
    found = run("--version")
    assert (found.code, found.out) == (0, f"edgellm {edgellm.__version__}\n")


def test_help_lists_every_command(run: Run) -> None:
    found = run("--help")
    assert found.code == 0
    assert all(f"    {name} " in found.out for name in SUMMARIES)


@pytest.mark.parametrize("command", SUMMARIES)
def test_every_command_has_help(run: Run, command: str) -> None:
    found = run(command, "--help")
    assert found.code == 0
    assert f"usage: edgellm {command}" in found.out


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fly"],
        ["run"],
        ["run", "tiny", "x", "--fast"],
        ["run", "tiny", "x", "--temp", "1"],  # no abbreviations
        ["run", "tiny", "x", "-n", "many"],
        ["run", "tiny", "x", "--logit-bias", "5"],
        ["run", "tiny", "x", "--logit-bias", "five=1"],
        ["models", "sell"],
        ["bench", "tiny", "--isa", "mmx"],
        ["eval", "tiny"],
    ],
)
def test_what_argparse_refuses(run: Run, argv: list[str]) -> None:
    found = run(*argv)
    assert (found.code, found.out) == (2, "")
    assert "usage: edgellm" in found.err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--temperature", "nan"),
        ("--temperature", "-1"),
        ("--top-p", "0"),
        ("--top-p", "1.01"),
        ("--top-k", "-1"),
        ("--min-p", "nan"),
        ("--repetition-penalty", "0"),
        ("-n", "-3"),
        ("-n", "0"),
        ("--seed", "-1"),
        ("--threads", "0"),
        ("--threads", "-2"),
        ("--context", "0"),
        ("--context", "100000"),
        ("--logit-bias", "3=inf"),
        ("--logit-bias", "100000=1"),
        ("--stop", ""),
    ],
)
def test_options_out_of_range(run: Run, tiny: str, option: str, value: str) -> None:
    found = run("run", tiny, "x", option, value)
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith("edgellm: ")
    assert found.err.count("\n") == 1


@pytest.mark.parametrize("command", [["run", "x"], ["chat"], ["tokenize"], ["bench"], ["models", "show"]])
def test_a_wrong_name_comes_with_near_ones(run: Run, tiny: str, command: list[str]) -> None:
    name, *options = command[1:] if command[0] == "models" else [command[0], *command[1:]]
    argv = ["models", name, "tinny"] if command[0] == "models" else [name, "tinny", *options]
    found = run(*argv)
    assert found.code == 2
    assert "'tinny'" in found.err
    assert "did you mean tiny" in found.err


def test_a_damaged_packed_file(run: Run, tiny: str) -> None:
    path = Store().path(tiny)
    path.write_bytes(path.read_bytes()[:-100])
    for argv in (["run", tiny, "x"], ["tokenize", tiny], ["models", "show", tiny]):
        found = run(*argv)
        assert found.code == 1
        assert found.err.startswith("edgellm: ") and found.err.count("\n") == 1
    listed = run("models")
    assert listed.code == 0 and "cannot be read" in listed.out
    assert run("models", "rm", tiny).code == 0


def test_a_file_that_is_no_model(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear Ada\n" * 100)
    for argv in (["run", path, "x"], ["tokenize", path], ["convert", path, tmp_path / "out"]):
        found = run(*argv)
        assert found.code == 1
        assert str(path) in found.err
    assert not (tmp_path / "out").exists()


def test_a_truncated_gguf(run: Run, tiny_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny_gguf.read_bytes()[:-1000])
    for argv in (["run", path, "x"], ["pull", path], ["convert", path, tmp_path / "out"]):
        assert run(*argv).code == 1


def test_an_error_of_the_system_is_one_line_too(
    run: Run, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run("convert", "nowhere.gguf", tmp_path / "out")
    assert (found.code, found.out) == (1, "")
    assert found.err.count("\n") == 1 and "nowhere.gguf" in found.err

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "unlink", full)
    found = run("models", "rm", tiny)
    assert (found.code, found.out) == (1, "")
    assert found.err.startswith("edgellm: ") and "No space left on device" in found.err and found.err.count("\n") == 1


def test_what_steers_a_terminal_does_not_get_into_messages(run: Run) -> None:
    found = run("run", "\x1b[31mred\nrose", "x")
    assert found.code == 2
    assert found.err.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="pipes break otherwise there")
@pytest.mark.parametrize("argv", [["run", "tiny", "x", "-n", "200"], ["tokenize", "tiny"]])
def test_a_reader_that_goes_away_ends_it_quietly(run: Run, tiny: str, argv: list[str]) -> None:
    command = [*LAUNCH, *argv]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141


def test_output_is_utf8_whatever_the_locale(run: Run, tiny: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [*LAUNCH, "run", "--raw", tiny, "\N{HOT BEVERAGE}", "--json", "-n", "20"]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert done.stderr == b""
    done.stdout.decode("utf-8")
