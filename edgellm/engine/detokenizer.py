"""From the tokens of an answer to its text, and whether it ends there."""

from typing import Literal

from edgellm.engine.params import SamplingParams
from edgellm.engine.stop import StopFinder
from edgellm.tokenizer import StreamDecoder, Tokenizer

FinishReason = Literal["stop", "length", "cancelled"]


class Detokenizer:
    """The text of one answer, which grows token by token."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, *, previous: int, limit: int | None) -> None:
        """`previous` is the prompt's last token; the answer has at most `limit` tokens."""
        self.text = ""
        self.stop_token_ids = frozenset(() if params.ignore_eos else tokenizer.stop_ids) | set(params.stop_token_ids)
        self.stop_reason: int | str | None = None  # the token, or the text of `stop`, that ended it
        self._decoder = StreamDecoder(tokenizer, previous=previous)
        self._stops = StopFinder(tuple(params.stop))
        self._limit = limit
        self._count = 0

    @property
    def num_left(self) -> int | None:
        """Tokens that may still come; None for any number."""
        return None if self._limit is None else self._limit - self._count

    def add(self, token: int) -> tuple[str, FinishReason | None]:
        """What the next token adds to the text, and why the answer ends with it, if it does."""
        self._count += 1
        reason: FinishReason | None = None
        if token in self.stop_token_ids:
            new = self._rest()
            reason = "stop"
            self.stop_reason = token
        else:
            new = self._stops.feed(self._decoder.feed(token))
            if self._stops.found:
                reason = "stop"
                self.stop_reason = self._stops.found
            elif self._limit is not None and self._count >= self._limit:
                new = new + self._rest()
                reason = "length"
        self.text += new
        return new, reason

    def _rest(self) -> str:
        """What was held back, since it could have become a stop text, or a character of several tokens."""
        return self._stops.feed(self._decoder.flush()) + self._stops.flush()
