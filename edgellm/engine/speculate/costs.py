"""What a step costs by its rows, learned from the steps that run anyway: nobody waits for a measurement."""

from itertools import pairwise

MAX_ROWS = 16
RATE = 0.1  # of a step's surprise that is believed: of 5 % noise 1 % is left; of the first ones more
LEAST_MORE = 0.01  # of the time of one row that a further one takes at least
LARGEST_SURPRISE = 2.0  # times as long as expected; more was another program
# Until drafts show it, so many further rows take this part of what as many rows of a long prompt take, since all of
# them read the weights once. SmolLM2-135M, by rows: 1 in 2.3 ms, 2 in 2.6, 4 in 3.2, 8 in 4.9, 16 in 8.7, 256 in 114.6
PARTS = {1: 0.65, 3: 0.7, 7: 0.85, MAX_ROWS - 1: 0.95}
UNKNOWN_ROW = 0.3  # of the time of one row: what a row of a prompt takes, until there was one
PROMPT_ROWS = 8  # of a step that shows what a row of a prompt takes


class CostModel:
    """Seconds of a step of 1..MAX_ROWS rows after a depth of tokens."""

    def __init__(self, depth_cost: float = 0.0) -> None:
        """`depth_cost` is the part of a step's time that every token of depth adds."""
        self._depth_cost = depth_cost
        self._one = 0.0  # seconds of one row at depth 0
        self._prompt_row = 0.0  # seconds of a row of a prompt at depth 0
        self._scale = [1.0] * MAX_ROWS  # times as much as expected, beyond the time of one row, by further rows
        self._num_ones = self._num_prompts = self._num_several = 0  # steps learned from

    @property
    def is_known(self) -> bool:
        """Whether there was a step that was not a prompt's, without which nothing can be said."""
        return self._num_ones > 0

    def seconds(self, depth: int) -> list[float]:
        """Times expected for steps of 1..MAX_ROWS rows."""
        assert self.is_known
        stretch = self._stretch(depth)
        return [stretch * (self._one + scale * self._more(further)) for further, scale in enumerate(self._scale)]

    def observe(self, rows: int, depth: int, seconds: float, *, is_prompt: bool = False) -> None:
        """Learn from a step: of a prompt, of one token, or of several, drafted ones or those of several requests.

        One row tells how fast the machine is now. Several never move the time of one row, or what drafts cost beyond
        expectation would be taken for a slower machine as long as they go on; they tell what further rows cost, half of
        it for their own number and half for all.
        """
        seconds /= self._stretch(depth)
        if is_prompt:
            self._observe_prompt(rows, seconds)
        elif rows == 1 or not self.is_known:
            self._num_ones += 1
            self._one = _learned(self._one, seconds / (1 + UNKNOWN_ROW * (rows - 1)), self._num_ones)
        elif rows <= MAX_ROWS:
            self._observe_several(rows - 1, seconds)

    def _observe_prompt(self, rows: int, seconds: float) -> None:
        if rows >= PROMPT_ROWS:
            self._num_prompts += 1
            row = max(seconds - self._one, 0.0) / (rows - 1)
            self._prompt_row = _learned(self._prompt_row, max(row, LEAST_MORE * self._one), self._num_prompts)

    def _observe_several(self, further: int, seconds: float) -> None:
        self._num_several += 1
        surprise = _surprise(seconds - self._one, self._scale[further] * self._more(further))
        half = surprise ** (_rate(self._num_several) / 2)
        self._scale = [scale * half for scale in self._scale]
        self._scale[further] *= half

    def _more(self, further: int) -> float:
        """What so many further rows take, before drafts have shown it: each at most what it takes alone.

        A first prompt is often slow, since the weights come from the disk; drafts are then tried, and show the truth.
        """
        row = min(self._prompt_row or UNKNOWN_ROW * self._one, self._one)
        return further * max(row * _PARTS[further], LEAST_MORE * self._one)

    def _stretch(self, depth: int) -> float:
        return 1 + self._depth_cost * depth


def _learned(before: float, seconds: float, count: int) -> float:
    """What is believed after the `count`th observation."""
    return before * _surprise(seconds, before) ** _rate(count) if before else seconds


def _rate(count: int) -> float:
    return max(RATE, 1 / count)


def _surprise(seconds: float, expected: float) -> float:
    """Times as long as expected."""
    return min(max(seconds / expected, 1 / LARGEST_SURPRISE), LARGEST_SURPRISE)


def _all_parts() -> list[float]:
    """PARTS for 0..MAX_ROWS - 1 further rows, linear between."""
    known = [(0, PARTS[1]), *PARTS.items()]
    parts = [PARTS[1]]
    for (low, before), (high, after) in pairwise(known):
        parts += [before + (after - before) * (further - low) / (high - low) for further in range(low + 1, high + 1)]
    return parts


_PARTS = _all_parts()
