"""edgellm run: one prompt, one answer; in a terminal and without a prompt, a conversation."""

import sys
from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from edgellm import Model, SamplingParams, Stream
from edgellm.apps.commands import chat
from edgellm.apps.constraints import add_constraint_options, constraint
from edgellm.apps.loading import load_with_reuse
from edgellm.apps.options import (
    MODEL_HELP,
    add_engine_options,
    add_json,
    add_reuse_options,
    add_sampling_options,
    add_timings,
    sampling_params,
)
from edgellm.apps.prefixes import remember_report
from edgellm.apps.summary import filled_context, summary
from edgellm.apps.terminal import INTERRUPTED, interrupt_closes, is_typed, note, read_stdin, write_json, write_text
from edgellm.errors import OptionError, UsageError


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "prompt",
        nargs="?",
        metavar="PROMPT",
        help="what to answer; text that is piped in goes after it; in a terminal, none opens a chat",
    )
    parser.add_argument("--system", metavar="TEXT", help="how the model should answer")
    parser.add_argument(
        "--raw", action="store_true", help="continue the text exactly as it is, without the chat template"
    )
    add_engine_options(parser)
    add_reuse_options(parser)
    add_sampling_options(parser)
    add_constraint_options(parser)
    add_timings(parser)
    add_json(parser)


def main(args: Namespace) -> int:
    if args.prompt is None and is_typed():
        _check_chat(args)
        return chat.main(args)
    params = sampling_params(args, constraint(args))
    if args.raw and args.system is not None:
        raise OptionError("--raw takes the prompt as it is, so --system has no place in it; leave one of them out")
    prompt = _prompt(args)
    with load_with_reuse(args) as model:
        with _start(model, prompt, params, args) as stream, interrupt_closes(stream):
            for piece in stream:
                if not args.json:
                    write_text(piece.text)
        remember_report(model, stream)
        _finish(stream, params, model, args)
    return INTERRUPTED if stream.finish_reason == "cancelled" else 0


def _check_chat(args: Namespace) -> None:
    """Errors: UsageError for options that only an answer to one prompt has."""
    single = {"--raw": args.raw, "--json": args.json, "a form of the answer": constraint(args) is not None}
    for option, is_given in single.items():
        if is_given:
            raise UsageError(f"{option} needs a prompt: edgellm run {args.model} PROMPT, or pipe one in")


def _prompt(args: Namespace) -> str:
    """The prompt, and after it, on a line of its own, what is piped in; without a last newline, unless it is raw."""
    piped = "" if is_typed() else read_stdin()
    if not args.raw:
        piped = piped.removesuffix("\n").removesuffix("\r")
    if args.prompt is None and not piped:
        raise UsageError(f"there is no prompt: edgellm run {args.model} PROMPT, or pipe one in")
    return "\n".join(text for text in (args.prompt, piped) if text)


def _start(model: Model, prompt: str, params: SamplingParams, args: Namespace) -> Stream:
    if args.raw:
        return model.generate(prompt, params)
    messages = [{"role": "system", "content": args.system}] if args.system is not None else []
    return model.chat([*messages, {"role": "user", "content": prompt}], params)


def _finish(stream: Stream, params: SamplingParams, model: Model, args: Namespace) -> None:
    if args.json:
        write_json(
            {
                "text": stream.text,
                "token_ids": stream.token_ids,
                "prompt_token_ids": stream.prompt_token_ids,
                "finish_reason": stream.finish_reason,
                "timings": asdict(stream.timings),
                "usage": asdict(stream.usage),
            }
        )
        return
    write_text("\n")
    if args.timings:
        sys.stderr.write(f"{summary(stream)}\n")
    else:
        note(summary(stream))
    if filled_context(stream, params):
        note(f"the answer ends here because the context of {model.context} tokens is full")
