"""Rotary position embedding as a table (Su et al., arXiv 2104.09864)."""

import numpy as np
from numpy.typing import NDArray

from edgellm.config import ModelConfig
from edgellm.memory.buffers import aligned_zeros

STEP = 512  # positions computed at once


class RopeTable:
    """float32 [context][2][E]: cosines, then sines that carry the sign of what they are multiplied with.

    Entries 2i and 2i+1 of a head turn together: (x, y) -> (x cos - y sin, y cos + x sin). Entries from rope_size on
    stay. Rows are computed when positions are first used, in float64.
    """

    def __init__(self, config: ModelConfig, context: int, factors: NDArray[np.float32] | None) -> None:
        exponents = np.arange(0, config.rope_size, 2) / config.rope_size
        self._frequencies = config.rope_theta**-exponents / config.rope_scale
        if factors is not None:
            self._frequencies = self._frequencies / factors
        self._rope_size = config.rope_size
        self._known = 0
        self.table = aligned_zeros((context, 2, config.head_size), np.float32)

    def ensure(self, positions: int) -> None:
        """Have the first `positions` rows ready."""
        while self._known < positions:
            first, last = self._known, min(self._known + STEP, len(self.table))
            angles = np.arange(first, last)[:, None] * self._frequencies
            rows, rotated = self.table[first:last], slice(0, self._rope_size)
            rows[:, 0] = 1.0
            rows[:, 0, rotated] = np.repeat(np.cos(angles), 2, axis=1)
            rows[:, 1, rotated] = np.stack((-np.sin(angles), np.sin(angles)), axis=-1).reshape(len(angles), -1)
            self._known = last
