"""Rotary position embedding as tables (Su et al., arXiv 2104.09864)."""

import numpy as np
from numpy.typing import NDArray

from edgellm.families.base import Weights
from edgellm.families.blocks import frequencies
from edgellm.memory.buffers import aligned_zeros
from edgellm.runtime.graph import RopeTable
from edgellm.runtime.plan import Plan

STEP = 512  # positions computed at once


class RopeTables:
    """float32 [context][2][E] each: cosines, then sines that carry the sign of what they are multiplied with.

    Entries 2i and 2i+1 of a head turn together: (x, y) -> (x cos - y sin, y cos + x sin). Entries from rope.size on
    stay. Rows are computed when positions are first used, in float64.
    """

    def __init__(self, plan: Plan, weights: Weights) -> None:
        self.memory = aligned_zeros(plan.table_bytes, np.uint8)
        self._known = 0
        self._context = plan.shape.context
        self._tables = [self._table(which, offset, weights) for which, offset in plan.rope.items()]

    def ensure(self, positions: int) -> None:
        """Have the first `positions` rows ready."""
        while self._known < positions:
            first = self._known
            last = min(self._known + STEP, self._context)
            for table, turns in self._tables:
                angles = np.arange(first, last)[:, None] * turns
                rows = table[first:last]
                rotated = slice(0, 2 * len(turns))
                rows[:, 0] = 1.0
                rows[:, 0, rotated] = np.repeat(np.cos(angles), 2, axis=1)
                rows[:, 1, rotated] = np.stack((-np.sin(angles), np.sin(angles)), axis=-1).reshape(len(angles), -1)
            self._known = last

    def _table(
        self, which: RopeTable, offset: int, weights: Weights
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """A table and the frequencies of its pairs."""
        size = self._context * 2 * which.head_size * 4
        table = self.memory[offset : offset + size].view(np.float32).reshape(self._context, 2, which.head_size)
        return table, frequencies(which.rope, weights)
