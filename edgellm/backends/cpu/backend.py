"""Processors as a backend: compiled kernels, and a team of threads that all models of a process share."""

from collections.abc import Iterable
from pathlib import Path
from typing import Self

from edgellm.backends.cpu.runner import CPURunner
from edgellm.backends.cpu.team import Team
from edgellm.backends.cpu.units import units_of
from edgellm.kernels import jit
from edgellm.kernels.jit import Library
from edgellm.kernels.objects import prebuilt_folder
from edgellm.memory.kv import KVCache
from edgellm.memory.store import HostStore
from edgellm.packed.header import PackedHeader
from edgellm.packed.read import PackedModel


class CPUBackend:
    """`threads` threads, of which the caller's is one, where `processors` are really available."""

    name = "cpu"

    def __init__(self, library: Library, *, threads: int, processors: int) -> None:
        self._library = library
        self._team = Team(library, threads, processors)
        self.leaves_a_processor = self._team.leaves_a_processor
        self.description = library.target.isa
        self.threads = threads

    @classmethod
    def load(
        cls, headers: Iterable[PackedHeader], kv_cache_dtypes: Iterable[str], kernels: Path, *,
        threads: int, processors: int, isa: str | None = None, progress: jit.Progress | None = None,
    ) -> Self:  # fmt: skip
        """With the kernels that models with these headers call, kept in the folder `kernels`. Errors: KernelError."""
        units = units_of(headers, kv_cache_dtypes)
        library = jit.load(kernels, units, prebuilt_folder(), isa=isa, progress=progress)
        return cls(library, threads=threads, processors=processors)

    @property
    def store(self) -> type[HostStore]:
        """The process's memory."""
        return HostStore

    def open(
        self, packed: PackedModel, cache: KVCache, *, context: int, max_rows: int, max_logit_rows: int
    ) -> CPURunner:
        """A model: Backend.open."""
        return CPURunner(
            self._library, self._team, packed, cache, context=context, max_rows=max_rows, max_logit_rows=max_logit_rows
        )

    def close(self) -> None:
        """End the threads. A step that runs is finished first by its caller."""
        self._team.close()
