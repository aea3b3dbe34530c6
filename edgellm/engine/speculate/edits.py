"""Copies with changes: a text that repeats another, but for a name or a word that it writes in place of the other's.

Where a copy leaves its source, it mostly comes back to it a few tokens on. What it wrote meanwhile, in place of what,
is an edit, and is expected wherever the source says the same again: of a name that changes throughout, only the first
change is a surprise.
"""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from edgellm.engine.speculate.text import IndexedText

LONGEST = 4  # tokens of an edit, on either side
CERTAIN = 2  # tokens after an edit that agree, before the copy counts as resumed; 1 where one token replaced one


class Cursor(NamedTuple):
    """Where a copy stands in its source: it goes on at `place`, after what is pending of a replacement."""

    place: int
    pending: tuple[int, ...] = ()


class Edit(NamedTuple):
    """What the source says, and what the copy says there."""

    old: tuple[int, ...]
    new: tuple[int, ...]


class Gap(NamedTuple):
    """Where a copy left its source: from `start` on the text differs from the source at `place`."""

    source: IndexedText
    place: int
    start: int


class Edits:
    """The edits of one text."""

    def __init__(self) -> None:
        self._edits: dict[int, Edit] = {}  # by the first token of what the source says

    def read(self, source: "array[int]", cursor: Cursor, count: int) -> tuple[list[int], Cursor]:
        """The next `count` tokens of a copy, fewer where the source ends, and where it stands after them."""
        place, pending = cursor
        if not pending and not self._edits:
            tokens = source[place : place + count].tolist()
            return tokens, Cursor(place + len(tokens))
        tokens = []
        while len(tokens) < count:
            if pending:
                tokens.append(pending[0])
                pending = pending[1:]
            elif place >= len(source):
                break
            elif edit := self._at(source, place):
                place = place + len(edit.old)
                pending = edit.new
            else:
                tokens.append(source[place])
                place += 1
        return tokens, Cursor(place, pending)

    def close(self, gap: Gap, text: "array[int]") -> Cursor | None:
        """Where the copy goes on if the text has come back to its source after a gap, which then is an edit."""
        source = gap.source.tokens
        written = text[gap.start :]
        for num_new in range(min(len(written), LONGEST + 1)):
            after = len(written) - num_new
            for num_old in (num_new, *(count for count in range(LONGEST + 1) if count != num_new)):
                place = gap.place + num_old
                if after < CERTAIN and not num_old == num_new == 1:
                    continue
                if source[place : place + after] == written[num_new:]:
                    self.learn(source[gap.place : place], written[:num_new])
                    return Cursor(place + after)
        return None

    def learn(self, old: Sequence[int], new: Sequence[int]) -> None:
        """Expect `new` wherever the source says `old`; nothing where old is empty, which would be everywhere."""
        if old:
            self._edits[old[0]] = Edit(tuple(old), tuple(new))

    def forget(self, source: "array[int]", place: int) -> None:
        """An edit was expected there, and did not come."""
        if edit := self._at(source, place):
            del self._edits[edit.old[0]]

    def _at(self, source: "array[int]", place: int) -> Edit | None:
        edit = self._edits.get(source[place]) if place < len(source) else None
        return edit if edit and tuple(source[place : place + len(edit.old)]) == edit.old else None


def is_hopeless(gap: Gap, text: Sequence[int]) -> bool:
    """Whether the text has gone on for too long to come back."""
    return len(text) - gap.start >= LONGEST + CERTAIN
