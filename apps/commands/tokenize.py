"""edgellm tokenize: text to token ids, without touching weights or kernels."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from edgellm.apps.options import MODEL_HELP, add_json
from edgellm.apps.terminal import read_stdin, write_json
from edgellm.converters.gguf_reader import open_gguf
from edgellm.load import GGUF_MAGIC, find_model
from edgellm.packed.header import open_header
from edgellm.store import Store
from edgellm.tokenizer import Vocabulary, open_tokenizer


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=f"{MODEL_HELP}, even one without tensors")
    parser.add_argument(
        "--no-special", action="store_true", help="take special tokens in the text as plain text, and add none"
    )
    add_json(parser)


def main(args: Namespace) -> int:
    tokenizer = open_tokenizer(open_vocabulary(args.model))
    ids = tokenizer.encode(read_stdin(), special=not args.no_special, add_bos=False if args.no_special else None)
    if args.json:
        write_json({"token_ids": ids})
    else:
        sys.stdout.write(" ".join(map(str, ids)) + "\n")
    return 0


def open_vocabulary(model: str) -> Vocabulary:
    """The vocabulary of a model; a GGUF is read as it is, not packed. Errors: ModelNotFoundError, FileFormatError."""
    path = Path(model)
    if model not in Store().names() and _is_gguf(path):
        return Vocabulary.from_gguf(open_gguf(path).metadata)
    header = open_header(find_model(model))
    tensor = header.table["tokenizer"]
    with header.path.open("rb") as file:
        file.seek(header.data_start + tensor.begin)
        return Vocabulary.from_bytes(file.read(tensor.nbytes))


def _is_gguf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC
