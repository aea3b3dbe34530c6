"""The thread team: Python threads that walk step programs together, each inside one native call.

Between steps a thread looks for work for some milliseconds, so that the next token finds it awake, and then
sleeps: a program that waits at a prompt uses no processor.
"""

import threading

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import ClosedError
from edgellm.kernels.jit import Library
from edgellm.kernels.ops import OPERATION_WORDS, TEAM, TEAM_WORDS
from edgellm.memory.buffers import address, aligned_zeros

SPINS = 2000  # looks at a barrier before giving way; it costs 0.3 us between 2 free cores, 6 us after a yield
# Looks for work before sleeping, some 2 ms: who sleeps may be woken on a busy core, and wait there first
PATIENCE = 100_000
PROGRAM, COUNT, STEP, TIMES = (TEAM.names.index(name) for name in ("program", "count", "step", "times"))


class Team:
    """`threads` threads, of which the caller's is one. One caller at a time; `close` ends the others."""

    def __init__(self, library: Library, threads: int, processors: int) -> None:
        """`processors` are really available: a larger team must not spin, or it waits for threads that cannot run."""
        self.threads = threads
        self._library = library  # whose code the threads are in
        self._lead, self._follow = library.entry("lead"), library.entry("follow")
        self._record = aligned_zeros(TEAM_WORDS, np.int64)
        self._address = address(self._record)
        self._set(TEAM.threads, threads)
        self._set(TEAM.spins, SPINS if threads <= processors else 0)
        self._patience = PATIENCE if threads <= processors else 1
        self._wake = threading.Condition()
        self._announced = 0  # programs so far: what the record's epoch becomes inside `lead`
        self._members = [
            threading.Thread(target=self._work, args=(index,), name=f"edgellm-{index}", daemon=True)
            for index in range(1, threads)
        ]
        for member in self._members:
            member.start()

    def run(self, program: NDArray[np.int64], step: int, times: NDArray[np.int64] | None = None) -> None:
        """Walk a program, int64 [operations][OPERATION_WORDS], on the step record at address `step`.

        Where `times` int64 [operations + 1] is given, it tells when each operation began and the last ended, in ticks.
        """
        if self._get(TEAM.stop):
            raise ClosedError("the model was closed; load it again to use it")
        assert program.shape[1] == OPERATION_WORDS, program.shape
        words = self._record
        words[PROGRAM], words[COUNT], words[STEP], words[TIMES] = address(program), len(program), step, address(times)
        with self._wake:
            self._announced += 1
            self._wake.notify_all()
        self._lead(self._address, 0, 0, 0)

    def close(self) -> None:
        """End the threads. A step that runs is finished first by its caller."""
        self._set(TEAM.stop, 1)
        with self._wake:
            self._wake.notify_all()
        for member in self._members:
            member.join()

    def _work(self, index: int) -> None:
        seen = aligned_zeros(1, np.int64)
        while not self._get(TEAM.stop):
            self._follow(address(self._record), index, address(seen), self._patience)
            with self._wake:
                while self._announced == seen[0] and not self._get(TEAM.stop):
                    self._wake.wait()

    def _get(self, offset: int) -> int:
        return int(self._record[offset // 8])

    def _set(self, offset: int, value: int) -> None:
        self._record[offset // 8] = value
