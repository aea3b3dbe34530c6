"""Where drafts come from: what any proposer does, and the one that needs no model."""

from collections.abc import Sequence
from typing import Protocol

from edgellm.engine.speculate.edits import Cursor, Edits, Gap, is_hopeless
from edgellm.engine.speculate.text import IndexedText, SessionTexts, longest_match
from edgellm.memory.tree import common_prefix

NO_CHANCE = 8  # tokens of agreement that are no chance, but a copy
PROMPT_END = 64  # tokens of a prompt that may be a copy already begun, whose edits are then known
GUESS = 3  # what agreement it is worth that a copy may go on after a token that differs


class Proposer(Protocol):
    """Guesses how one text goes on."""

    @property
    def match(self) -> int:
        """What a proposal would rest on: tokens of agreement between the text's end and its source; 0 for no proposal.

        Tokens after like matches are expected to be right as often, and the next token of a proposal to have a match
        of one more. All from MAX_MATCH on are alike, so a model says MAX_MATCH.
        """

    @property
    def seconds(self) -> float:
        """Time to propose a token; 0 where it does not count, and then every token of the text tests the proposer."""

    def extend(self, tokens: Sequence[int]) -> None:
        """The text goes on with `tokens`: first the prompt, then the answer as it comes."""

    def ask(self, limit: int) -> None:
        """`propose` will be asked for so many tokens. What takes time is computed before, for all requests together."""

    def propose(self, limit: int) -> list[int]:
        """At most `limit` tokens that may come next."""

    def close(self) -> None:
        """The text is over."""


class LookupProposer:
    """What followed the longest end of the text where it stood before, in the text itself or in a past one.

    After prompt lookup (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding), decoding with a suffix automaton
    (Hu et al. 2024, arXiv 2411.10666) and suffix decoding (Oliaro et al. 2024, arXiv 2411.04975). A long agreement is a
    copy, which is followed through edits, after which a search would find nothing.
    """

    seconds = 0.0

    def __init__(self, session: SessionTexts | None = None) -> None:
        """Knows the texts of `session` as they are now; `text` enters it in the end."""
        self.text = IndexedText()
        self.match = 0
        self._source, self._cursor = self.text, Cursor(0)  # the match ends before the cursor
        self._edits = Edits()
        self._gap: Gap | None = None  # where a copy left its source, until it comes back or is given up
        self._session = session
        self._past = [] if session is None else session.recent()

    def extend(self, tokens: Sequence[int]) -> None:
        """Takes 0.25 us a token and, where the match ends, a search of some 2 us, with past texts 5 us."""
        if len(tokens) > PROMPT_END:
            self._leave(tokens[:-PROMPT_END])
            tokens = tokens[-PROMPT_END:]
        elif len(tokens) == 1 and not self.match and self._gap is None:
            # So is most of a free text, where every call counts: after a step none of its code is in a cache
            self.text.extend(tokens)
            if self.text.earlier[-1] or self._past:
                self._search()
            return
        done = 0
        while done < len(tokens):
            # In a gap every token may be the one that closes it
            piece = tokens[done:] if self._gap is None else tokens[done : done + 1]
            right = common_prefix(self.propose(len(piece)), piece)
            if right:
                self._keep_on(piece[:right])
            else:
                self._leave(piece[:1])
            done += right or 1

    def ask(self, limit: int) -> None:
        """Nothing needs computing before."""

    def propose(self, limit: int) -> list[int]:
        """What followed; where that is the end of the text itself, it goes round."""
        return self._read(limit)[0] if self.match else []

    def close(self) -> None:
        """Other requests may propose from the text from now on."""
        if self._session is not None:
            self._session.add(self.text)

    def _keep_on(self, tokens: Sequence[int]) -> None:
        """The text goes on as proposed."""
        cursor = self._read(len(tokens))[1]
        self.text.extend(tokens)
        if cursor.pending or cursor.place < len(self._source):
            # Still the longest match: a longer one elsewhere would have been longer before.
            self._follow(self.match + len(tokens), self._source, cursor)
        else:
            self._search()
        if self._gap is not None:
            self._close_gap(self._gap)

    def _leave(self, tokens: Sequence[int]) -> None:
        """The text goes on otherwise than proposed."""
        gap = self._gap_here()
        self.text.extend(tokens)
        self._search()
        if gap is not None:
            self._gap = gap
            if self.match < GUESS and gap.place + 1 < len(gap.source):  # one token may stand in place of one
                self._follow(GUESS, gap.source, Cursor(gap.place + 1))
        elif self._gap is not None:
            self._close_gap(self._gap)

    def _read(self, count: int) -> tuple[list[int], Cursor]:
        tokens, cursor = self._edits.read(self._source.tokens, self._cursor, count)
        period = len(self.text) - self._cursor.place
        if self._source is self.text and len(tokens) == period:
            while len(tokens) < count:
                tokens.append(tokens[-period])
            cursor = Cursor(self._cursor.place + count)
        return tokens, cursor

    def _gap_here(self) -> Gap | None:
        """Where a copy leaves its source, if this is one."""
        if self.match < NO_CHANCE:
            return None
        place, pending = self._cursor
        if pending:
            return None
        self._edits.forget(self._source.tokens, place)
        return Gap(self._source, place, len(self.text))

    def _close_gap(self, gap: Gap) -> None:
        cursor = self._edits.close(gap, self.text.tokens)
        if cursor is not None or is_hopeless(gap, self.text.tokens):
            self._gap = None
        if cursor is not None and self.match < NO_CHANCE and cursor.place < len(gap.source):
            self._follow(NO_CHANCE, gap.source, cursor)

    def _search(self) -> None:
        self.match = 0
        own = longest_match(self.text, [self.text])
        past = longest_match(self.text, self._past, above=own.length if own else 0)
        if match := past or own:
            self._follow(match.length, match.text, Cursor(match.place))

    def _follow(self, length: int, source: IndexedText, cursor: Cursor) -> None:
        if self._session is not None and source is not self.text and self.match < NO_CHANCE <= length:
            self._session.use(source)
            self._past.remove(source)
            self._past.insert(0, source)
        self.match = length
        self._source = source
        self._cursor = cursor
