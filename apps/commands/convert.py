"""edgellm convert: a GGUF file in, a packed file out."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from edgellm.apps.conversion_report import write_report
from edgellm.apps.options import add_json, add_layout
from edgellm.apps.progress import byte_bar
from edgellm.apps.terminal import write_json
from edgellm.converters.convert import convert


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SRC.gguf", help="the file to pack")
    parser.add_argument("destination", type=Path, metavar="DST", help="the packed file to write")
    add_layout(parser)
    add_json(parser)


def main(args: Namespace) -> int:
    with byte_bar() as progress:
        report = convert(
            args.source,
            args.destination,
            layout=args.layout,
            progress=lambda done, total, _: progress("packing", done, total),
        ).to_json()
    if args.json:
        write_json({"path": str(args.destination), "bytes": args.destination.stat().st_size, **report})
    else:
        write_report(report)
    return 0
