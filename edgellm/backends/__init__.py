"""Backends by name. One is imported when it is asked for, so that none pays for what another needs."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm.backends.base import Backend
    from edgellm.packed.header import PackedHeader

BACKENDS = ("cpu", "naive")


def load_backend(
    name: str, headers: Iterable["PackedHeader"], kv_cache_dtypes: Iterable[str], kernels: Path, *,
    threads: int, processors: int, isa: str | None = None, progress: Callable[[int, int, str], None] | None = None,
) -> "Backend":  # fmt: skip
    """A backend of BACKENDS for models with these headers; what it compiles is kept in the folder `kernels`.

    Errors: KernelError.
    """
    if name == "naive":
        from edgellm.backends.naive.backend import NaiveBackend

        return NaiveBackend()
    assert name == "cpu", name
    from edgellm.backends.cpu.backend import CPUBackend

    return CPUBackend.load(
        headers, kv_cache_dtypes, kernels, threads=threads, processors=processors, isa=isa, progress=progress
    )
