"""edgellm chat: a conversation in the terminal, or line by line through a pipe."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator

from edgellm.apps.conversation import Conversation
from edgellm.apps.loading import load_with_reuse
from edgellm.apps.options import (
    MODEL_HELP,
    add_engine_options,
    add_reuse_options,
    add_sampling_options,
    add_timings,
    sampling_params,
)
from edgellm.apps.terminal import INTERRUPTED, decode, note

DEFAULT_MODEL = "smollm2-135m-instruct"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", default=DEFAULT_MODEL, metavar="MODEL", help=f"{MODEL_HELP} (default: {DEFAULT_MODEL})"
    )
    parser.add_argument("--system", metavar="TEXT", help="how the model should answer")
    add_engine_options(parser)
    add_reuse_options(parser)
    add_sampling_options(parser)
    add_timings(parser)


def main(args: Namespace) -> int:
    params = sampling_params(args)
    typed = sys.stdin.isatty() and sys.stdout.isatty()
    with load_with_reuse(args) as model:
        conversation = Conversation(model, params, args.system, timings=args.timings)
        if typed:
            note(f"{model.name}, {model.context} tokens of context. /help lists commands, Ctrl-C stops an answer.")
        for line in typed_lines() if typed else piped_lines():
            if not conversation.take(line) or (conversation.exit_code == INTERRUPTED and not typed):
                break
    return 0 if typed else conversation.exit_code


def piped_lines() -> Iterator[str]:
    """The lines of standard input. Errors: UsageError where one is not UTF-8."""
    for line in sys.stdin.buffer:
        yield decode(line, "standard input")


def typed_lines() -> Iterator[str]:
    """Lines from the prompt, until Ctrl-D or two times Ctrl-C; the first clears the line."""
    from prompt_toolkit import PromptSession  # slow to import, and not needed in a pipe

    session: PromptSession[str] = PromptSession("> ")
    interrupted = False
    while True:
        try:
            line = session.prompt()
        except EOFError:
            return
        except KeyboardInterrupt:
            if interrupted:
                return
            interrupted = True
            note("Ctrl-C again, Ctrl-D or /exit leaves")
            continue
        interrupted = False
        yield line
