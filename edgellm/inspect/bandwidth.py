"""How fast this machine reads memory: the limit that decoding is measured against."""

import time

import numpy as np

from edgellm.backends.cpu.team import Team
from edgellm.kernels import ops
from edgellm.kernels.jit import Library
from edgellm.memory.buffers import address, aligned_zeros

BUFFER_BYTES = 1 << 28  # many times any cache
ROUNDS = 8


def measure(library: Library, threads: int, processors: int) -> float:
    """Bytes per second that a team of `threads` threads reads: the best of some rounds over a buffer of 256 MB."""
    data = aligned_zeros(BUFFER_BYTES, np.uint8)
    sums = aligned_zeros((threads, 8), np.int64)
    data[:] = 1  # commits the memory; zeros would all be one page
    record = ops.READ.pack(
        kernel=library.addresses["read"],
        barrier=ops.NO_BARRIER,
        data=address(data),
        bytes=BUFFER_BYTES,
        out=address(sums),
    )
    program = aligned_zeros((1, ops.OPERATION_WORDS), np.int64)
    program[0, : len(record)] = record
    team = Team(library, threads, processors)
    best = float("inf")
    try:
        for _ in range(ROUNDS):
            start = time.perf_counter()
            team.run(address(program), len(program), 0)
            best = min(best, time.perf_counter() - start)
    finally:
        team.close()
    return BUFFER_BYTES / best
