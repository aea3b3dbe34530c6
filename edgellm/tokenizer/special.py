"""Finding the tokens that stand in a text by their own spelling."""

import re
from collections.abc import Mapping
from itertools import pairwise


class SpellingTable:
    """Tokens found in a text by their spelling: the leftmost first, of several at one place the longest."""

    def __init__(self, tokens: Mapping[str, int]) -> None:
        self._tokens = tokens
        lengths: dict[str, set[int]] = {}
        for text in tokens:
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        self._first = re.compile("[" + "".join(map(re.escape, lengths)) + "]" if lengths else "(?!)")

    def split(self, text: str) -> list[str | int]:
        """The ids of the tokens spelled in the text, and the (never empty) texts between them."""
        parts: list[str | int] = []
        start = at = 0
        while match := self._first.search(text, at):
            found = self._spelled_at(text, match.start())
            at = match.start() + len(found or " ")
            if found is not None:
                parts += [text[start : match.start()]] if match.start() > start else []
                parts.append(self._tokens[found])
                start = at
        return [*parts, text[start:]] if start < len(text) else parts

    def hide(self, text: str, mark: str) -> str:
        """The text with `mark` put into every token spelled in it, and into one that it ends in the middle of.

        Then no token is found in it, nor where a template joins it with another text. A token of a single
        character has no inside and stays.
        """
        cuts = {match.start() + 1 for match in self._first.finditer(text) if self._spelled_at(text, match.start())}
        end = len(text.rstrip())  # templates trim
        longest = max((sizes[0] for sizes in self._lengths.values()), default=0)
        for match in self._first.finditer(text, max(0, end - longest), end):
            begun = text[match.start() : end]
            if any(token.startswith(begun) for token in self._tokens):
                cuts.add(match.start() + 1)
        edges = [0, *sorted(cuts), len(text)]
        return mark.join(text[a:b] for a, b in pairwise(edges))

    def _spelled_at(self, text: str, at: int) -> str | None:
        candidates = (text[at : at + length] for length in self._lengths[text[at]])
        return next((candidate for candidate in candidates if candidate in self._tokens), None)
