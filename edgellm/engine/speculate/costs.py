"""What a step costs by its rows: measured once on this machine, and corrected by every step since."""

from collections.abc import Callable
from functools import cached_property

MAX_ROWS = 16
MEASURED_ROWS = (1, 2, 4, 8, 16)  # between them time is taken as linear until steps say better
RATE = 0.1  # of a step's surprise that is believed: of 5 % noise 1 % is left; of the first ones more
LARGEST_SURPRISE = 2.0  # times as long as expected; more was another program


class CostModel:
    """Seconds of a step of 1..MAX_ROWS rows behind a depth of tokens, in which attention makes it linear."""

    def __init__(self, measure: Callable[[int, int], float], depth: int) -> None:
        """`measure(rows, depth)` gives the seconds of a step; called when first needed, for depth 0 and `depth` > 0."""
        assert depth > 0, depth
        self._measure, self._depth = measure, depth
        self.is_measured = False
        self._pace, self._scale = 1.0, [1.0] * MAX_ROWS  # times as long as measured: all, and by rows beyond that
        self._num_ones = self._num_several = 0  # steps learned from

    @cached_property
    def _measured(self) -> list[tuple[float, float]]:
        """Seconds by rows: at depth 0, and more for every token of depth."""
        self.is_measured = True
        shallow, deep = (_all_rows([self._measure(rows, at) for rows in MEASURED_ROWS]) for at in (0, self._depth))
        return [(low, (high - low) / self._depth) for low, high in zip(shallow, deep, strict=True)]

    def seconds(self, depth: int) -> list[float]:
        """Times expected for steps of 1..MAX_ROWS rows."""
        return [
            self._pace * scale * (shallow + slope * depth)
            for scale, (shallow, slope) in zip(self._scale, self._measured, strict=True)
        ]

    def observe(self, rows: int, depth: int, seconds: float) -> None:
        """Learn from a step that took `seconds`; more than MAX_ROWS rows teach nothing.

        A step of one row tells how fast the machine is now, so all times follow it. One of several never moves the time
        of one row, or what drafts cost beyond expectation would be taken for a slower machine as long as they go on;
        half of its surprise is its own height's and half that of several rows.
        """
        if rows > MAX_ROWS or not self.is_measured:
            return
        shallow, slope = self._measured[rows - 1]
        surprise = seconds / (self._pace * self._scale[rows - 1] * (shallow + slope * depth))
        surprise = min(max(surprise, 1 / LARGEST_SURPRISE), LARGEST_SURPRISE) - 1
        if rows == 1:
            self._num_ones += 1
            self._pace *= 1 + max(RATE, 1 / (1 + self._num_ones)) * surprise
        else:
            self._num_several += 1
            half = 1 + max(RATE, 1 / (1 + self._num_several)) / 2 * surprise
            self._scale[1:] = [scale * half for scale in self._scale[1:]]
            self._scale[rows - 1] *= half


def _all_rows(measured: list[float]) -> list[float]:
    """Times of 1..MAX_ROWS rows, linear between those of MEASURED_ROWS."""
    times = measured[:1]
    for low, high, time, next_time in zip(MEASURED_ROWS, MEASURED_ROWS[1:], measured, measured[1:], strict=False):
        times += [time + (next_time - time) * (rows - low) / (high - low) for rows in range(low + 1, high + 1)]
    return times
