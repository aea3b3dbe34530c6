"""Opening a model while a person watches."""

from pathlib import Path

import edgellm
from edgellm.apps.terminal import StatusLine
from edgellm.load import find_model


def find(model: str) -> Path:
    """The packed file of a model; a GGUF is packed into the cache first. Errors: as edgellm.load."""
    with StatusLine() as line:
        return find_model(model, lambda done, total, _: line.show(f"packing {model}, once: {100 * done // total} %"))


def load(path: Path, *, context: int | None, threads: int | None, isa: str | None = None) -> edgellm.Model:
    """Open a packed file. Errors: as edgellm.load."""
    with StatusLine() as line:

        def compiling(done: int, total: int, name: str) -> None:
            line.show(f"compiling kernels for this processor, once: {done}/{total}")

        return edgellm.load(path, context=context, threads=threads, isa=isa, progress=compiling)
