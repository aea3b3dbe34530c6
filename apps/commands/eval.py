"""edgellm eval: perplexity of a model on a text."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from edgellm.apps import perplexity
from edgellm.apps.loading import find, load
from edgellm.apps.options import MODEL_HELP, add_json, add_machine_options, at_least
from edgellm.apps.progress import bar
from edgellm.apps.terminal import read_text, write_json
from edgellm.errors import OptionError, UsageError


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="text to score, UTF-8")
    parser.add_argument(
        "--context", type=int, default=1024, metavar="N", help="tokens of a window (default: %(default)s)"
    )
    parser.add_argument(
        "--stride", type=int, default=512, metavar="N", help="tokens from one window to the next (default: %(default)s)"
    )
    parser.add_argument(
        "--tokens", type=int, default=8192, metavar="N", help="score the first N of the text (default: %(default)s)"
    )
    add_machine_options(parser)
    add_json(parser)


def main(args: Namespace) -> int:
    at_least(2, "--tokens", args.tokens)
    at_least(2, "--context", args.context)
    if not 1 <= args.stride < args.context:
        raise OptionError(f"--stride {args.stride} is not in 1..{args.context - 1}, below --context {args.context}")
    text = read_text(args.text)
    with load(find(args.model), args, context=args.context) as model:
        ids = model.tokenize(text)[: args.tokens]
        if len(ids) < 2:
            raise UsageError(f"{args.text} has {len(ids)} tokens; at least 2 are needed, one to expect after the other")
        with bar("scoring") as progress:
            found = perplexity.measure(model.logits, ids, context=args.context, stride=args.stride, progress=progress)
        name = model.name
    if args.json:
        write_json(
            {
                "model": name,
                "perplexity": found.perplexity,
                "mean_loss": found.mean_loss,
                "tokens": found.tokens,
                "context": args.context,
                "stride": args.stride,
            }
        )
    else:
        sys.stdout.write(f"perplexity {found.perplexity:.4f}, loss {found.mean_loss:.5f} over {found.tokens} tokens\n")
    return 0
