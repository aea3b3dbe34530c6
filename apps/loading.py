"""Opening a model while a person watches."""

import atexit
import gc
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import edgellm
from edgellm.apps.prefixes import prefix_folder
from edgellm.apps.terminal import StatusLine, one_line
from edgellm.errors import CacheFolderError
from edgellm.kernels import jit
from edgellm.kernels.objects import prebuilt_folder
from edgellm.load import find_model
from edgellm.store import cache_folder


def find(model: str) -> Path:
    """The packed file of a model; a GGUF is packed into the cache first. Errors: as edgellm.load."""
    with StatusLine() as line:
        return find_model(model, lambda done, total, _: line.show(f"packing {model}, once: {100 * done // total} %"))


def load_kernels(isa: str | None = None) -> jit.Library:
    """The kernels alone. Errors: KernelError."""
    with StatusLine() as line:
        return jit.load(cache_folder() / "kernels", prebuilt=prebuilt_folder(), isa=isa, progress=_compiling(line))


def load(path: Path, args: Namespace, **options: Any) -> edgellm.Model:
    """Open a packed file as the options that commands share say, after `options` of edgellm.load."""
    shared = {"threads": args.threads, "kv_cache_dtype": args.kv_cache_dtype, "kv_memory": args.kv_memory}
    atexit.register(gc.freeze)  # else Python looks for garbage in all of a model before it exits: 45 ms
    with StatusLine() as line:
        return edgellm.load(path, progress=_compiling(line), **(shared | options))


def load_with_reuse(args: Namespace) -> edgellm.Model:
    """The model that a command is to run, with a draft model and the prefixes on disk, as its options say."""
    path = find(args.model)
    draft = None if args.draft is None else find(args.draft)
    options = {"context": args.context, "draft": draft}
    if args.no_prefix_cache:
        return load(path, args, **options)
    try:
        return load(path, args, prefix_cache_dir=prefix_folder(), **options)
    except CacheFolderError as error:  # which is no reason to give no answer
        sys.stderr.write(f"edgellm: prefixes are not kept: {one_line(str(error))}, or say --no-prefix-cache\n")
        return load(path, args, **options)


def _compiling(line: StatusLine) -> jit.Progress:
    return lambda done, total, _: line.show(f"compiling kernels for this processor, once: {done}/{total}")
