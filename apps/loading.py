"""Opening a model while a person watches."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import edgellm
from edgellm.apps.kept import prefix_folder
from edgellm.apps.terminal import StatusLine
from edgellm.kernels import jit
from edgellm.load import find_model
from edgellm.store import cache_folder


def find(model: str) -> Path:
    """The packed file of a model; a GGUF is packed into the cache first. Errors: as edgellm.load."""
    with StatusLine() as line:
        return find_model(model, lambda done, total, _: line.show(f"packing {model}, once: {100 * done // total} %"))


def load_kernels(isa: str | None = None) -> jit.Library:
    """The kernels alone. Errors: KernelError."""
    with StatusLine() as line:
        return jit.load(cache_folder() / "kernels", isa=isa, progress=_compiling(line))


def load(path: Path, args: Namespace, **options: Any) -> edgellm.Model:
    """Open a packed file as the options that commands share say, after `options` of edgellm.load."""
    shared = {"threads": args.threads, "kv_cache_dtype": args.kv_cache_dtype, "kv_memory": args.kv_memory}
    with StatusLine() as line:
        return edgellm.load(path, progress=_compiling(line), **(shared | options))


def load_with_reuse(args: Namespace) -> edgellm.Model:
    """The model that a command is to run, with a draft model and the prefixes on disk, as its options say."""
    path, draft = find(args.model), None if args.draft is None else find(args.draft)
    kept = None if args.no_prefix_cache else prefix_folder()
    return load(path, args, context=args.context, draft=draft, prefix_cache=kept)


def _compiling(line: StatusLine) -> jit.Progress:
    return lambda done, total, _: line.show(f"compiling kernels for this processor, once: {done}/{total}")
