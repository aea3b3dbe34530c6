"""edgellm run: one prompt, one answer."""

import sys
from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from edgellm import Model, SamplingParams, Stream
from edgellm.apps.answer import filled_context, summary
from edgellm.apps.constraints import add_constraint_options, constraint
from edgellm.apps.kept import remember_report
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
from edgellm.apps.terminal import INTERRUPTED, interrupt_closes, note, read_stdin, write_json, write_text
from edgellm.errors import OptionError, UsageError


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "-p",
        "--prompt",
        metavar="TEXT",
        help="what to answer; - or none reads it from standard input, less a last newline",
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


def _prompt(args: Namespace) -> str:
    prompt: str | None = args.prompt
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and sys.stdin.isatty():
        raise UsageError("there is no prompt: give -p TEXT, or pipe one in")
    text = read_stdin()
    return text if args.raw else text.removesuffix("\n").removesuffix("\r")


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
                "ids": stream.ids,
                "prompt_ids": stream.prompt_ids,
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
