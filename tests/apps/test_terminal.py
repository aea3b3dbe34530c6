"""What a terminal sees, and what it must not."""

import io
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

import edgellm
from edgellm.apps.loading import find, load
from edgellm.apps.progress import bar, byte_bar
from edgellm.apps.tables import scaled, size, write_table
from edgellm.apps.terminal import StatusLine, note, one_line, printable, write_json, write_text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def at_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """From now on, both outputs are a terminal."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def test_printable_keeps_text_and_drops_what_steers() -> None:
    assert printable("Ä\t\N{PILE OF POO}\n") == "Ä\t\N{PILE OF POO}\n"
    assert printable("a\x1b[2Jb\x07\x9bc\r") == "a\ufffd[2Jb\ufffd\ufffdc\ufffd"
    assert one_line("a\n  b\x1b") == "a b\ufffd"


def test_an_answer_is_shown_safely_and_piped_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = at_terminal(monkeypatch)
    write_text("a\x1bb")
    assert screen.getvalue() == "a\ufffdb"
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stdout", pipe)
    write_text("a\x1bb")
    assert pipe.getvalue() == "a\x1bb"


def test_notes_and_status_are_for_people_only(capsys: pytest.CaptureFixture[str]) -> None:
    note("hello")
    with StatusLine() as line, bar("scoring") as progress, byte_bar() as bytes_progress:
        line.show("1/2")
        progress(1, 2)
        bytes_progress("download", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_status_line_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = at_terminal(monkeypatch)
    with StatusLine() as line:
        line.show("compiling: 1/2")
        line.show("short")
    *_, last = screen.getvalue().split("\r")[:-1]
    written = screen.getvalue().split("\r")
    assert written[1:3] == ["compiling: 1/2", "short".ljust(14)]
    assert last.isspace() and len(last) >= 5


def test_a_status_line_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = at_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "20")
    with StatusLine() as line:
        line.show("x" * 50)
    assert screen.getvalue().split("\r")[1] == "x" * 19


def test_packing_is_shown_at_a_terminal(home: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    screen = at_terminal(monkeypatch)
    find(str(tiny_gguf))
    assert f"packing {tiny_gguf}, once: 100 %" in screen.getvalue()


def test_compiling_is_shown_at_a_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def compile_one(path: Path, *, progress: Callable[[int, int, str], None], **options: object) -> None:
        progress(3, 8, "matmul")

    monkeypatch.setattr(edgellm, "load", compile_one)
    screen = at_terminal(monkeypatch)
    load(tmp_path, Namespace(threads=None, kv_cache_dtype="bf16", kv_memory=None), context=None)
    assert "compiling kernels for this processor, once: 3/8" in screen.getvalue()


def test_tables_are_not_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    write_table({"name": "left", "size": "right"}, [["x" * 300, "[red]1"], ["y", "22"]])
    titles, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["x" * 300, "[red]1"]
    assert second.startswith("y ") and second.rstrip().endswith("22") and len(second) == len(first) == len(titles)


def test_sizes() -> None:
    assert [size(n) for n in (0, 999, 999.7, 98_164_608, 35.2e9)] == ["0 B", "999 B", "1 kB", "98.2 MB", "35.2 GB"]
    assert scaled(134_515_008, ("", "k", "M", "G")) == "135 M"
    assert scaled(12, ("", "k")) == "12"


def test_json_is_one_line_and_refuses_what_is_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    write_json({"text": "Ä\n"})
    assert capsys.readouterr().out == '{"text": "Ä\\n"}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"value": float("nan")})
