"""edgellm pull: get a model and pack it."""

import sys
from argparse import ArgumentParser, Namespace

from edgellm.apps.options import add_layout
from edgellm.apps.progress import byte_bar
from edgellm.apps.tables import size
from edgellm.apps.terminal import note
from edgellm.catalogue import CATALOGUE
from edgellm.packed.header import open_header
from edgellm.pull import pull
from edgellm.store import SUFFIX, Store


def add_arguments(parser: ArgumentParser) -> None:
    known = ", ".join(CATALOGUE)
    parser.add_argument("spec", metavar="SPEC", help=f"{known}, PATH.gguf or hf:OWNER/REPO/FILE.gguf")
    parser.add_argument("--name", metavar="NAME", help="what to call it (default: as it is called)")
    add_layout(parser)


def main(args: Namespace) -> int:
    with byte_bar() as progress:
        path = pull(args.spec, name=args.name, layout=args.layout, store=Store(), progress=progress)
    header = open_header(path)
    name = path.name.removesuffix(SUFFIX)
    layout = "+".join(header.quant_names)
    sys.stdout.write(f"{name}: {layout}, {header.bits_per_weight:.2f} bits per weight, {size(header.nbytes)}\n")
    note(f"talk to it: edgellm chat {name}")
    return 0
