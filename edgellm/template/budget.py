"""How much a chat template may do: CPU time, and characters built. Both are far above what real ones need."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import SecurityError

MAX_SECONDS = 2.0  # of CPU time
MAX_WORK = 1 << 24  # characters built beside what the input accounts for
WORK_PER_INPUT = 64  # and for each character of input
MAX_ARGUMENT = 1 << 16  # numbers given to filters and methods: widths, counts
MAX_BITS = 4096  # of an integer
MAX_SEARCH = 1 << 30  # length of a text times length of what is searched in it
ENTRY = 16  # what a list entry counts, in characters


class BudgetError(SecurityError):
    """A template that does more than any chat template needs."""


class Meter:
    """What one rendering may still do."""

    def __init__(self, input_size: int) -> None:
        self._left = self._largest = MAX_WORK + WORK_PER_INPUT * input_size
        self._deadline = time.thread_time() + MAX_SECONDS

    def step(self) -> None:
        if time.thread_time() > self._deadline:
            raise BudgetError(f"it runs for more than {MAX_SECONDS} seconds")

    def spend(self, amount: int) -> None:
        self._left -= amount
        if self._left < 0:
            raise BudgetError("it builds too much text")

    def made(self, value: Any) -> Any:
        """The value, once its size is paid for."""
        if isinstance(value, str):
            self.spend(len(value))
        elif isinstance(value, list | tuple | dict):
            self.spend(ENTRY * len(value))
            size(value, self._largest)  # one list in many places makes a small value that is huge when written out
        elif isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise BudgetError(f"it computes an integer of {value.bit_length()} bits")
        return value


_meter: ContextVar[Meter] = ContextVar("meter")


def meter() -> Meter:
    """That of the rendering under way."""
    return _meter.get()


@contextmanager
def metered(input_size: int) -> Iterator[None]:
    """Gives everything inside a fresh budget that grows with the size of the input."""
    token = _meter.set(Meter(input_size))
    try:
        yield
    finally:
        _meter.reset(token)


def size(value: Any, limit: int) -> int:
    """Characters and entries of a value written out in full; BudgetError above the limit."""
    total = 0
    waiting = [value]
    while waiting:
        part = waiting.pop()
        total += ENTRY
        if isinstance(part, str):
            total += len(part)
        elif isinstance(part, list | tuple):
            waiting.extend(part)
        elif isinstance(part, dict):
            waiting.extend(part)
            waiting.extend(part.values())
        if total + len(waiting) > limit:
            raise BudgetError("it builds too large a value")
    return total
