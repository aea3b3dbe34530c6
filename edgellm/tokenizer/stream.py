"""Text while it is being generated."""

import codecs

from edgellm.tokenizer.tokenizer import Tokenizer


class StreamDecoder:
    """Ids one by one to text; what it has given, with `flush`, is exactly `tokenizer.decode` of all ids.

    A character is given when its last byte has come, never a part of it.
    """

    def __init__(self, tokenizer: Tokenizer, *, special: bool = False, previous: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._previous = previous
        self._held = b""  # the beginning of a character

    def feed(self, token: int) -> str:
        """The text that this token completes; empty inside a character."""
        data = self._tokenizer.token_bytes(token, self._previous, special=self._special)
        self._previous = token
        data = self._held + data
        text, used = codecs.utf_8_decode(data, "replace")
        self._held = data[used:]
        return text

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never got its last byte."""
        text = self._held.decode(errors="replace")
        self._held = b""
        return text
