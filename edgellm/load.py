"""The front door: from a name or a file to a model."""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from edgellm.backends import BACKENDS, load_backend
from edgellm.engine.draft import DRAFT_KV_CACHE_DTYPE
from edgellm.engine.driver import DRIVERS
from edgellm.engine.model import Model
from edgellm.errors import ModelNotFoundError, OptionError
from edgellm.kernels.kv_formats import kv_formats
from edgellm.memory.buffers import trim
from edgellm.packed.read import open_packed
from edgellm.processors import available_processors
from edgellm.store import Store, cache_folder

DEFAULT_CONTEXT = 8192  # tokens, where the model was trained for more
MAX_THREADS = 256
MAX_REQUESTS = 1 << 20
GGUF_MAGIC = b"GGUF"
Progress = Callable[[int, int, str], None]


def load(
    model: str | os.PathLike[str],
    *,
    context: int | None = None,
    device: str = "cpu",
    threads: int | None = None,
    isa: str | None = None,
    kv_cache_dtype: str = "bf16",
    kv_memory: int | None = None,
    draft: str | os.PathLike[str] | None = None,
    prefix_cache_dir: str | os.PathLike[str] | None = None,
    prefix_cache_bytes: int = 4 << 30,
    driver: str = "reader",
    max_requests: int | None = None,
    progress: Progress | None = None,
) -> Model:
    """Open a model of the store by name, a packed file, or a GGUF, which is packed into the cache first.

    `device` is "cpu", or "naive": plain NumPy, a row at a time in float64, which compiles nothing and heeds neither
    `threads` nor `isa`; for tests, and to see what a model computes, slowly.
    `context` is the most tokens a text may have (None: what the model was trained for, up to 8192), `threads` how many
    work (None: the physical cores really available), `isa` restricts the kernels to a lesser instruction set.
    `kv_cache_dtype` "int8" keeps keys and values in 8.5 bits an entry: half the memory, for a slight loss.
    `kv_memory` is the bytes that keys and values of all texts, cached prefixes included, may take (None: 4 contexts, if
    the free memory holds as much).
    `draft` names a smaller model of the same vocabulary that proposes tokens to this one, which changes no text.
    `prefix_cache_dir` is a folder, shared by models and processes, that keeps keys and values of texts for the next
    start, up to `prefix_cache_bytes`. It is private to your user: anyone who can read it can recover your prompts.
    `driver` says who runs the steps. "reader": whoever reads an answer, for all that are under way. "thread": a thread,
    while there are requests; for servers, whose many readers are tasks of asyncio.
    `max_requests` is how many may be under way or wait; more are refused (QueueFullError).
    `progress` hears (done, total, what) while kernels are compiled, once a machine, and while a GGUF is packed.

    Errors: ModelNotFoundError, OptionError, FileFormatError, UnsupportedModelError, KernelError.
    """
    if device not in BACKENDS:
        raise OptionError(f"device {device!r} must be one of: {', '.join(BACKENDS)}")
    if driver not in DRIVERS:
        raise OptionError(f"driver {driver!r} must be one of: {', '.join(DRIVERS)}")
    if max_requests is not None:
        max_requests = _whole("max_requests", max_requests, MAX_REQUESTS)
    if kv_cache_dtype not in kv_formats():
        raise OptionError(f"kv_cache_dtype {kv_cache_dtype!r} must be one of: {', '.join(kv_formats())}")
    processors = available_processors().count
    threads = processors if threads is None else _whole("threads", threads, MAX_THREADS)
    path = find_model(model, progress)
    draft_path = None if draft is None else find_model(draft, progress)
    with _without_collections():
        packed = open_packed(path)
        draft_packed = None if draft_path is None else open_packed(draft_path)
        trained = packed.network.context
        context = min(trained, DEFAULT_CONTEXT) if context is None else _whole("context", context, trained)
        headers = [packed.header]
        kv_dtypes = [kv_cache_dtype]
        if draft_packed is not None:
            headers.append(draft_packed.header)
            kv_dtypes = [*dict.fromkeys([kv_cache_dtype, DRAFT_KV_CACHE_DTYPE])]
        made = load_backend(
            device, headers, kv_dtypes, cache_folder() / "kernels",
            threads=threads, processors=processors, isa=isa, progress=progress,
        )  # fmt: skip
        try:
            opened = Model(
                packed,
                made,
                context=context,
                kv_cache_dtype=kv_cache_dtype,
                kv_memory=kv_memory,
                draft=draft_packed,
                prefix_cache_dir=None if prefix_cache_dir is None else Path(prefix_cache_dir),
                prefix_cache_bytes=prefix_cache_bytes,
                driver=driver,
                max_requests=max_requests,
            )
        except BaseException:
            made.close()  # no thread is left of a model that did not come to be
            raise
    trim()  # 7 MB that making a tokenizer of 49,000 tokens freed
    return opened


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """What is made while a model loads stays as long as it: looking for garbage there took a tenth of a start."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def find_model(model: str | os.PathLike[str], progress: Progress | None = None) -> Path:
    """The packed file of a model given as `load` takes it. Errors: as load."""
    store = Store()
    if isinstance(model, str) and model in store.names():
        return store.path(model)
    path = Path(model)
    if not path.is_file():
        raise ModelNotFoundError(store.not_found(os.fspath(model)))
    with path.open("rb") as file:
        is_gguf = file.read(len(GGUF_MAGIC)) == GGUF_MAGIC
    if not is_gguf:
        return path
    # Only here: the converter and what it needs cost 10 MB and 40 ms, and most starts are of packed files.
    from edgellm.converters.on_the_fly import pack_on_the_fly

    return pack_on_the_fly(path, cache_folder(), progress=progress)


def _whole(name: str, value: int, highest: int) -> int:
    if type(value) is not int or not 1 <= value <= highest:
        raise OptionError(f"{name} {value!r} is not a whole number in 1..{highest}")
    return value
