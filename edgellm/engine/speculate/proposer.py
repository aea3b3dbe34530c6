"""Where drafts come from: what any proposer does, and the one that needs no model."""

from collections.abc import Sequence
from typing import Protocol

from edgellm.engine.speculate.text import IndexedText, SessionTexts, longest_match

NO_CHANCE = 8  # tokens of agreement with a past text that are no chance


class Proposer(Protocol):
    """Guesses how one text goes on."""

    @property
    def match(self) -> int:
        """What a proposal would rest on: tokens of agreement between the text's end and its source; 0 for no proposal.

        Tokens behind like matches are expected to be right as often, and the next token of a proposal to have a match
        of one more. All from MAX_MATCH on are alike, so a model says MAX_MATCH.
        """

    @property
    def seconds(self) -> float:
        """Time to propose a token; 0 where it does not count, and then every token of the text tests the proposer."""

    def extend(self, tokens: Sequence[int]) -> None:
        """The text goes on with `tokens`: first the prompt, then the answer as it comes."""

    def propose(self, limit: int) -> list[int]:
        """At most `limit` tokens that may come next."""


class LookupProposer:
    """What followed the longest end of the text where it stood before, in the text itself or in a past one.

    After prompt lookup (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding), decoding with a suffix automaton
    (Hu et al. 2024, arXiv 2411.10666) and suffix decoding (Oliaro et al. 2024, arXiv 2411.04975).
    """

    seconds = 0.0

    def __init__(self, session: SessionTexts | None = None) -> None:
        """Knows the texts of `session` as they are now; `text` enters it when the engine adds it at the end."""
        self.text = IndexedText()
        self.match = 0
        self._source, self._place = self.text, 0  # the match ends before _place
        self._session = session
        self._past = [] if session is None else session.recent()

    def extend(self, tokens: Sequence[int]) -> None:
        """Takes 0.15 us a token and, where the match ends, a search of some 5 us, with past texts 10 us."""
        as_proposed = self.match > 0 and self.propose(len(tokens)) == list(tokens)
        self.text.extend(tokens)
        place = self._place + len(tokens)
        if as_proposed and place < len(self._source):
            # Still the longest match: a longer one elsewhere would have been longer before.
            self._follow(self.match + len(tokens), self._source, place)
        else:
            self._search()

    def propose(self, limit: int) -> list[int]:
        """What followed; where that is the end of the text itself, it goes round."""
        if not self.match:
            return []
        proposal = self._source.tokens[self._place : self._place + limit].tolist()
        if self._source is self.text:
            period = len(self.text) - self._place
            while len(proposal) < limit:
                proposal.append(proposal[-period])
        return proposal

    def _search(self) -> None:
        own = longest_match(self.text, [self.text])
        past = longest_match(self.text, self._past, above=own.length if own else 0)
        self.match = 0
        if match := past or own:
            self._follow(*match)

    def _follow(self, length: int, source: IndexedText, place: int) -> None:
        if self._session is not None and source is not self.text and self.match < NO_CHANCE <= length:
            self._session.use(source)
            self._past.remove(source)
            self._past.insert(0, source)
        self.match, self._source, self._place = length, source, place
