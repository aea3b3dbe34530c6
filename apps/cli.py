"""The command `edgellm`: its parser, and what becomes of errors.

Exit codes: 0 done, 1 it failed, 2 it was asked for something that makes no sense, 130 ended by Ctrl-C.
"""

import io
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Protocol

import edgellm
from edgellm.apps.terminal import INTERRUPTED, one_line
from edgellm.errors import EdgeLLMError

BROKEN_PIPE = 141  # 128 + SIGPIPE

SUMMARIES = {
    "run": "answer one prompt",
    "chat": "talk to a model",
    "tokenize": "turn text from standard input into token ids",
    "eval": "measure a model's perplexity on a text",
    "bench": "measure a model's speed and memory on this machine",
    "doctor": "show what edgellm finds on this machine",
    "models": "list, show and remove models",
    "cache": "show and clear the prefixes kept on disk, and say why the last prompt missed",
    "pull": "get a model and pack it",
    "convert": "pack a GGUF file into a file of your choice",
}


class Command(Protocol):
    """What the module of a command offers."""

    def add_arguments(self, parser: ArgumentParser) -> None: ...
    def main(self, args: Namespace) -> int: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code. Mistyped options end in argparse's SystemExit(2)."""
    _write_utf8()
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes at exit
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except (EdgeLLMError, OSError, MemoryError) as error:
        sys.stderr.write(f"edgellm: {one_line(str(error) or type(error).__name__)}\n")
        return error.exit_code if isinstance(error, EdgeLLMError) else 1


def _run(argv: Sequence[str]) -> int:
    parser = ArgumentParser(prog="edgellm", description="Language models on this machine.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"edgellm {edgellm.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parsers = {
        name: subparsers.add_parser(name, help=summary, description=f"{summary.capitalize()}.", allow_abbrev=False)
        for name, summary in SUMMARIES.items()
    }
    if not argv or argv[0] not in parsers:
        parser.parse_args(argv)  # which ends here: with help, the version, or what is wrong
    command = _command(argv[0])
    command.add_arguments(parsers[argv[0]])
    status = command.main(_parse(parsers[argv[0]], argv[1:]))
    sys.stdout.flush()
    return status


def _parse(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """Options and other arguments in any order, unless a further command is among them."""
    try:
        return parser.parse_intermixed_args(argv)
    except TypeError:  # there are further commands
        return parser.parse_args(argv)


def _command(name: str) -> Command:
    """The module of a command, imported only when it is chosen; spelled out for type checkers and PyInstaller."""
    match name:
        case "run":
            from edgellm.apps.commands import run

            return run
        case "chat":
            from edgellm.apps.commands import chat

            return chat
        case "tokenize":
            from edgellm.apps.commands import tokenize

            return tokenize
        case "eval":
            from edgellm.apps.commands import eval as eval_

            return eval_
        case "bench":
            from edgellm.apps.commands import bench

            return bench
        case "doctor":
            from edgellm.apps.commands import doctor

            return doctor
        case "models":
            from edgellm.apps.commands import models

            return models
        case "cache":
            from edgellm.apps.commands import cache

            return cache
        case "pull":
            from edgellm.apps.commands import pull

            return pull
        case "convert":
            from edgellm.apps.commands import convert

            return convert
    raise AssertionError(name)


def _write_utf8() -> None:
    """A model may write any character, whatever the locale says."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
