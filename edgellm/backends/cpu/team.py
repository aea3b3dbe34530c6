"""The thread team: Python threads that walk step programs together, each inside one native call.

Between steps a thread looks for work for some milliseconds, so that the next token finds it awake, and then
sleeps: a program that waits at a prompt uses no processor.
"""

import threading

import numpy as np

from edgellm.errors import ClosedError
from edgellm.kernels.jit import Library
from edgellm.kernels.ops import TEAM, TEAM_WORDS
from edgellm.memory.buffers import address, aligned_zeros, elements

SPINS = 2000  # looks at a barrier before giving way; it costs 0.3 us between 2 free cores, 6 us after a yield
# Looks for work before sleeping, some 2 ms: who sleeps may be woken on a busy core, and wait there first
PATIENCE = 100_000
PROGRAM, COUNT, STEP, THREADS, SPINS_WORD, STOP, TIMES = (
    TEAM.names.index(name) for name in ("program", "count", "step", "threads", "spins", "stop", "times")
)


class Team:
    """`threads` threads, of which the caller's is one. One caller at a time; `close` ends the others."""

    def __init__(self, library: Library, threads: int, processors: int) -> None:
        """`processors` are really available: a larger team must not spin, or it waits for threads that cannot run."""
        self.threads = threads
        self.leaves_a_processor = threads < processors
        self._library = library  # whose code the threads are in
        self._lead = library.entry("lead")
        self._follow = library.entry("follow")
        self._record = aligned_zeros(TEAM_WORDS, np.int64)
        self._address = address(self._record)
        self._words = elements(self._record)
        self._words[THREADS] = threads
        self._words[SPINS_WORD] = SPINS if threads <= processors else 0
        self._patience = PATIENCE if threads <= processors else 1
        self._wake = threading.Condition()
        self._announced = 0  # programs so far: what the record's epoch becomes inside `lead`
        self._num_asleep = 0
        self._members = [
            threading.Thread(target=self._work, args=(index,), name=f"edgellm-{index}", daemon=True)
            for index in range(1, threads)
        ]
        for member in self._members:
            member.start()

    def run(self, program: int, count: int, step: int, times: int = 0) -> None:
        """Walk the program at an address, int64 [count][OPERATION_WORDS], on the step record at address `step`.

        At `times`, if not 0, int64 [count + 1] tell when each operation began and the last ended, in ticks.
        """
        words = self._words
        if words[STOP]:
            raise ClosedError("the model was closed; load it again to use it")
        words[PROGRAM], words[COUNT], words[STEP], words[TIMES] = program, count, step, times
        self._announced += 1
        if self._num_asleep:  # who falls asleep just now has counted itself before it looks for programs
            with self._wake:
                self._wake.notify_all()
        self._lead(self._address, 0, 0, 0)

    def close(self) -> None:
        """End the threads. A step that runs is finished first by its caller."""
        self._words[STOP] = 1
        with self._wake:
            self._wake.notify_all()
        for member in self._members:
            member.join()

    def _work(self, index: int) -> None:
        seen = aligned_zeros(1, np.int64)
        while not self._words[STOP]:
            self._follow(self._address, index, address(seen), self._patience)
            with self._wake:
                self._num_asleep += 1
                while self._announced == seen[0] and not self._words[STOP]:
                    self._wake.wait()
                self._num_asleep -= 1
