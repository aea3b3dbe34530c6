"""How fast this machine reads memory: the limit that decoding is measured against."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

BUFFER_BYTES = 1 << 28  # many times any cache
ROUNDS = 8


def measure(threads: int) -> float:
    """Bytes per second that `threads` threads read together: the best of some rounds over a buffer of 256 MB."""
    buffer = np.ones(BUFFER_BYTES // 8, np.int64)
    parts = np.array_split(buffer, threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(ROUNDS):
            start = time.perf_counter()
            list(pool.map(np.sum, parts))
            best = min(best, time.perf_counter() - start)
    return BUFFER_BYTES / best
