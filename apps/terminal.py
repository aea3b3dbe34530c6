"""Plain reading and writing: text, JSON, notes for a person who is watching. Nothing here is slow to import."""

import json
import shutil
import signal
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Protocol, Self

from edgellm.errors import UsageError

INTERRUPTED = 130  # exit code after Ctrl-C: 128 + SIGINT, as shells have it
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Closable(Protocol):
    def close(self) -> None: ...


def write_json(value: dict[str, object]) -> None:
    """One object, on standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(text: str) -> None:
    """Shown at once, even in a pipe. What would steer a terminal does not reach one."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def note(text: str) -> None:
    """A line for a person who is watching, on standard error; nothing where that is no terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"{printable(text)}\n")
        sys.stderr.flush()


def printable(text: str) -> str:
    """The text without characters that steer a terminal: a model and its file may hold any."""
    return "".join(
        character if character in "\n\t" or unicodedata.category(character) != "Cc" else REPLACEMENT
        for character in text
    )


def one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def is_typed() -> bool:
    """Whether somebody types on standard input, as opposed to what is piped in."""
    return sys.stdin is not None and sys.stdin.isatty()


def read_stdin() -> str:
    """All of standard input, exactly; nothing where it is closed. Errors: UsageError where it is not UTF-8."""
    return "" if sys.stdin is None else decode(sys.stdin.buffer.read(), "standard input")


def read_text(path: Path) -> str:
    """A whole file. Errors: UsageError where it cannot be read or is not UTF-8."""
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); check the path") from error


def decode(data: bytes, what: str) -> str:
    """UTF-8 bytes as text; `what` names them in the UsageError."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} is not UTF-8 at byte {error.start}: convert it first, e.g. with iconv") from error


@contextmanager
def interrupt_closes(stream: Closable) -> Iterator[None]:
    """Ctrl-C closes the stream, which then ends within a step, and raises no KeyboardInterrupt."""

    def close(signal_number: int, frame: FrameType | None) -> None:
        stream.close()

    previous = signal.signal(signal.SIGINT, close)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


class StatusLine:
    """A line on standard error, written over and over, that is gone in the end; nothing where it is no terminal."""

    def __init__(self) -> None:
        self._shown = 0  # characters

    def show(self, text: str) -> None:
        if sys.stderr.isatty():
            text = one_line(text)[: shutil.get_terminal_size().columns - 1]
            sys.stderr.write(f"\r{text.ljust(self._shown)}")
            sys.stderr.flush()
            self._shown = len(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._shown:
            sys.stderr.write(f"\r{' ' * self._shown}\r")
            sys.stderr.flush()
