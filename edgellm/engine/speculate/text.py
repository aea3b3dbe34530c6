"""Texts that know where their tokens stood before, and a bounded number of past ones.

The index is a hash chain as in deflate (RFC 1951, section 4), of pairs of tokens: the last place of every pair, and for
every place the one before it with the same pair. A chain's places are compared backwards, and the longest agreement
wins. That finds what n-gram lookup finds for every n from 2 on at once, and what a suffix automaton finds (Hu et al.
2024, arXiv 2411.10666). An index of single tokens finds more, of which too little is right to be worth a search after
every token, and long chains hide the right place. Next tokens that were right of those proposed (SmolLM2's tokens):

    textwrap.py of Python 3.11, 4,848            pairs 1,041 of 2,154    single tokens 1,404 of 3,978
    a page of documentation, 6,001                     1,211 of 3,235                  1,509 of 5,182
    textwrap.py, then with 4 % edited, 9,696           5,090 of 6,578                  4,499 of 8,616

It never looks at more than a fixed number of places, and a past text is searched where it lies, without a state to
carry from token to token. A search took 1.5 to 2.9 us of these texts, 4.0 to 4.9 with single tokens.
"""

import threading
from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple

NO_TOKEN = -1  # before the first
MIN_MATCH = 2  # tokens that agree at least: the index is of pairs
MAX_MATCH = 32  # tokens that are compared; of longer agreements the most recent is as good as any
LOOKS = 32  # places that a search looks at, 0.1 us each; with 64 past texts gain up to 1 %, nothing else does


class IndexedText:
    """A text that grows, and the places of its pairs of tokens.

    A place is the number of tokens up to it: what follows there is `tokens[place]`. 0 is none.

        tokens       a  b  c  a  b
        place        1  2  3  4  5
        earlier      0  0  0  0  2    place of the same pair before
        last         ab: 5, bc: 3, ca: 4
    """

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self.tokens = array("i")
        self.earlier = array("i")
        self.last: dict[int, int] = {}
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Add tokens, 0.25 us each."""
        last = self.last
        earlier = self.earlier
        before = self.tokens[-1] if self.tokens else NO_TOKEN
        for place, token in enumerate(tokens, len(self) + 1):
            pair = before << 32 | token
            earlier.append(last.get(pair, 0))
            last[pair] = place
            before = token
        self.tokens.extend(tokens)


class Match(NamedTuple):
    """An agreement of MIN_MATCH..MAX_MATCH tokens with those before `place` of `text`, where the text goes on."""

    length: int
    text: IndexedText
    place: int


def longest_match(end: IndexedText, texts: Iterable[IndexedText], above: int = 0) -> Match | None:
    """The longest end of `end` that stood in `texts` before and is longer than `above` tokens; of equals the first
    text's, and the last in it. Looks at LOOKS places, text after text, each from its end.
    """
    found = None
    length = above
    looks = LOOKS
    there = end.tokens
    most = min(len(end), MAX_MATCH)
    if len(there) < MIN_MATCH:
        return None
    pair = there[-2] << 32 | there[-1]
    for text in texts:
        here = text.tokens
        earlier = text.earlier
        place = earlier[-1] if text is end else text.last.get(pair, 0)
        while place and looks and length < most:
            looks -= 1
            # Where the token that would make it longer differs, nothing else needs comparing.
            if length < place < len(here) and here[place - 1 - length] == there[-1 - length]:
                limit = min(place, most)
                agree = MIN_MATCH
                while agree < limit and here[place - 1 - agree] == there[-1 - agree]:
                    agree += 1
                if agree > length:
                    length = agree
                    found = Match(agree, text, place)
            place = earlier[place - 1]
    return found


class SessionTexts:
    """Texts of past requests to propose from; the least recently used leave first. May be used from several threads."""

    def __init__(self, max_tokens: int = 65536) -> None:
        """Keeps at most `max_tokens` tokens, of 8 bytes each and 100 more for every different pair of a text."""
        self._max_tokens = max_tokens
        self._texts: list[IndexedText] = []  # least recently used first
        self._lock = threading.Lock()

    def add(self, text: IndexedText) -> None:
        """Keep a text, which must not grow any more, in place of those that it continues; not one above the bound."""
        if len(text) > self._max_tokens:
            return
        with self._lock:
            self._texts = [old for old in self._texts if text.tokens[: len(old)] != old.tokens]
            self._texts.append(text)
            while sum(map(len, self._texts)) > self._max_tokens:
                del self._texts[0]

    def use(self, text: IndexedText) -> None:
        """Note that a request writes what stands in a text."""
        with self._lock:
            if text in self._texts:
                self._texts.remove(text)
                self._texts.append(text)

    def recent(self) -> list[IndexedText]:
        """The texts of this moment, most recently used first."""
        with self._lock:
            return self._texts[::-1]
