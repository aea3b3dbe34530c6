"""What a step costs by its rows: measured once on this machine, and corrected by every step since."""

from collections.abc import Callable
from functools import cached_property

MAX_ROWS = 16
MEASURED_ROWS = (1, 2, 4, 8, 16)  # between them time is taken as linear until steps say better
RATE = 0.1  # of a step's surprise that is believed: of 5 % noise 1 % is left; of the first ones more
LEAST_MORE = 0.01  # of the time of one row that a further one takes at least
LARGEST_SURPRISE = 2.0  # times as long as expected; more was another program


class CostModel:
    """Seconds of a step of 1..MAX_ROWS rows behind a depth of tokens, in which attention makes it linear."""

    def __init__(self, measure: Callable[[int, int], float], depth: int) -> None:
        """`measure(rows, depth)` gives the seconds of a step; called when first needed, for depth 0 and `depth` > 0."""
        assert depth > 0, depth
        self._measure, self._depth = measure, depth
        self.is_measured = False
        self._pace = 1.0  # times as long as measured
        self._scale = [1.0] * MAX_ROWS  # times as much as measured, beyond the time of one row, by rows
        self._num_ones = self._num_several = 0  # steps learned from

    @cached_property
    def _measured(self) -> list[tuple[float, float]]:
        """Seconds by rows: at depth 0, and more for every token of depth."""
        self.is_measured = True
        shallow, deep = (_all_rows([self._measure(rows, at) for rows in MEASURED_ROWS]) for at in (0, self._depth))
        return [(low, (high - low) / self._depth) for low, high in zip(shallow, deep, strict=True)]

    def seconds(self, depth: int) -> list[float]:
        """Times expected for steps of 1..MAX_ROWS rows."""
        one, pace = self._one(depth), self._pace
        return [pace * (one + scale * self._more(rows, depth, one)) for rows, scale in enumerate(self._scale)]

    def observe(self, rows: int, depth: int, seconds: float) -> None:
        """Learn from a step that took `seconds`; more than MAX_ROWS rows teach nothing.

        A step of one row tells how fast the machine is now, so all times follow it. One of several never moves the time
        of one row, or what drafts cost beyond expectation would be taken for a slower machine as long as they go on; it
        tells what further rows cost, half of it for its own height and half for all.
        """
        if rows > MAX_ROWS or not self.is_measured:
            return
        one = self._one(depth)
        if rows == 1:
            self._num_ones += 1
            self._pace *= _surprise(seconds, self._pace * one) ** max(RATE, 1 / (1 + self._num_ones))
        else:
            self._num_several += 1
            expected = self._scale[rows - 1] * self._more(rows - 1, depth, one)
            surprise = _surprise(seconds / self._pace - one, expected)
            half = surprise ** (max(RATE, 1 / (1 + self._num_several)) / 2)
            self._scale = [scale * half for scale in self._scale]
            self._scale[rows - 1] *= half

    def _one(self, depth: int) -> float:
        shallow, slope = self._measured[0]
        return shallow + slope * depth

    def _more(self, further_rows: int, depth: int, one: float) -> float:
        """What so many further rows take, as measured: something, whatever a noisy measurement says."""
        shallow, slope = self._measured[further_rows]
        return max(shallow + slope * depth - one, LEAST_MORE * further_rows * one)


def _surprise(seconds: float, expected: float) -> float:
    """Times as long as expected."""
    return min(max(seconds / expected, 1 / LARGEST_SURPRISE), LARGEST_SURPRISE)


def _all_rows(measured: list[float]) -> list[float]:
    """Times of 1..MAX_ROWS rows, linear between those of MEASURED_ROWS."""
    times = measured[:1]
    for low, high, time, next_time in zip(MEASURED_ROWS, MEASURED_ROWS[1:], measured, measured[1:], strict=False):
        times += [time + (next_time - time) * (rows - low) / (high - low) for rows in range(low + 1, high + 1)]
    return times
