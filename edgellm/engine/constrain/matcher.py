"""How far one answer has come in its constraint."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import GrammarError, OptionError

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Matcher:
    """Says which token may come next. Costs some microseconds to copy; for one thread at a time.

    Stop tokens are allowed where the text may end, and are the only ones after the first of them.
    """

    def __init__(
        self, parser: "LLMatcher", vocabulary: int, stop_ids: frozenset[int], failed: Callable[[], object]
    ) -> None:
        """`vocabulary` is V; the parser has accepted nothing yet; `failed` is called when it comes to a limit."""
        self._parser = parser
        self._vocabulary = vocabulary
        self._stop_ids = stop_ids
        self._failed = failed
        self._texts = self._stops = 0  # tokens accepted

    @property
    def may_stop(self) -> bool:
        """Whether the text may end here."""
        return self._stops > 0 or self._parser.is_accepting()

    @property
    def is_finished(self) -> bool:
        """Whether the text ends here: no token but a stop token can follow."""
        return self._stops > 0 or self._parser.is_stopped()

    def fill_mask(self, mask: NDArray[np.int32]) -> None:
        """Say which tokens may come next, without the interpreter's lock.

        mask  int32  [ceil(V/32)]  overwritten: bit i of word w is token 32 w + i; 1 is allowed; 0 beyond V

        Errors: GrammarError where a token takes more work than llguidance grants, or no text of the form goes on.
        """
        assert mask.dtype == np.int32 and mask.shape == (-(-self._vocabulary // 32),) and mask.flags.c_contiguous
        if self._stops:
            mask.fill(0)
            for token in self._stop_ids:
                mask.view(np.uint32)[token // 32] |= np.uint32(1 << token % 32)
            return
        self._parser.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._check()

    def accept(self, token: int) -> None:
        """Go on after a token that the mask allows. Errors: OptionError for another, which changes nothing."""
        if token in self._stop_ids:
            if self.may_stop:
                self._stops += 1
                return
        elif not self._stops and 0 <= token < self._vocabulary and self._parser.try_consume_tokens([token]):
            self._texts += 1
            return
        self._check()
        raise OptionError(f"token {token} is not allowed here by the constraint; take one that the mask allows")

    def rollback(self, count: int) -> None:
        """Be as if the last `count` tokens had never been accepted. Errors: OptionError where there were fewer."""
        if not 0 <= count <= self._texts + self._stops:
            raise OptionError(f"rollback of {count} tokens, {self._texts + self._stops} were accepted")
        stops = min(count, self._stops)
        self._stops -= stops
        self._texts -= count - stops
        if count > stops:
            done = self._parser.rollback(count - stops)
            self._check()
            assert done, count

    def forced(self) -> list[int]:
        """The tokens that must come next, one after the other, since the grammar leaves no choice of text.

        They are the only ones that the masks allow. Empty at the end of the text, and where a character that may
        follow could be part of another token with the forced ones.
        """
        return [] if self.is_finished else self._parser.compute_ff_tokens()

    def validate(self, tokens: Sequence[int]) -> int:
        """How many of these tokens, from the first on, could be accepted one after the other. Changes nothing.

        A forced text may come in other tokens than `forced` has; the masks have only those.
        """
        assert all(0 <= token < self._vocabulary for token in tokens)
        count = 0 if self.is_finished else self._parser.validate_tokens(list(tokens))
        if self.is_finished or (count and tokens[count - 1] in self._stop_ids):
            while count < len(tokens) and tokens[count] in self._stop_ids:
                count += 1
        return count

    def copy(self) -> Self:
        """Another matcher in the same state, which goes on by itself."""
        twin = type(self)(self._parser.deep_copy(), self._vocabulary, self._stop_ids, self._failed)
        twin._texts = self._texts
        twin._stops = self._stops
        return twin

    def _check(self) -> None:
        if self._parser.is_error():
            self._failed()
            raise GrammarError(f"constraint: {problem(self._parser)}; write it more simply")


def problem(parser: "LLMatcher") -> str:
    """What is wrong with a parser, without its state and backtraces; empty where nothing is."""
    text = parser.get_error().partition("\n<")[0]
    return "no text of this form goes on here" if text.startswith("NoExtension") else text
