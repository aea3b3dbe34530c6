"""What every tokenizer does; how plain text is cut is left to bpe.py and spm.py."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np

from edgellm.errors import OptionError
from edgellm.tokenizer.special import SpellingTable
from edgellm.tokenizer.vocabulary import BYTE, CONTROL, END_TEXTS, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary

_INTEGERS = (int, np.integer)


class Tokenizer(ABC):
    """Texts to ids and back.

    Control tokens are read from a text only where asked. User-defined tokens are words of the language the model
    learned and are always taken whole, as SentencePiece, Hugging Face and llama.cpp do it.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        # The vocabulary itself is not kept: its merges, 48,000 texts, are the engine's from here on.
        self._tokens = vocabulary.tokens
        self._types = vocabulary.types
        control = vocabulary.texts_of(CONTROL)
        if vocabulary.unknown is not None and self._types[vocabulary.unknown] == UNKNOWN:
            control[self._tokens[vocabulary.unknown]] = vocabulary.unknown
        self.control = SpellingTable(control)
        self._user_defined = SpellingTable(vocabulary.texts_of(USER_DEFINED))
        self._puts_space = vocabulary.kind == "spm" and vocabulary.add_space_prefix
        self.vocabulary_size = len(self._tokens)  # V
        self.bos = vocabulary.bos
        self._eos = vocabulary.eos
        self._add_bos = vocabulary.add_bos
        self._add_eos = vocabulary.add_eos
        self.bos_token, self.eos_token = (
            "" if id_ is None else self._tokens[id_] for id_ in (vocabulary.bos, vocabulary.eos)
        )
        ends = {id_ for text, id_ in control.items() if text in END_TEXTS} | {vocabulary.eos, vocabulary.eot}
        self.stop_ids = frozenset(id_ for id_ in ends if id_ is not None)

    def encode(self, text: str, *, special: bool, add_bos: bool | None = None) -> list[int]:
        """The ids of a text.

        special: tokens such as <|im_start|> are read from the text; without it they are text like any other.
        add_bos: None puts the BOS (and EOS) token as the vocabulary says where special is set, and none where not.
        """
        if special:
            return self.encode_parts(self.control.split(text), add_bos=add_bos)
        return self.encode_parts([text], add_bos=bool(add_bos))

    def encode_parts(self, parts: Iterable[str | int], *, add_bos: bool | None = None) -> list[int]:
        """The ids of a text whose control tokens are already ids: every text here is plain. BOS is never put twice."""
        ids: list[int] = []
        after_text = False
        for part in parts:
            for piece in self._user_defined.split(_checked(part)) if isinstance(part, str) else (part,):
                after_text, starts = isinstance(piece, str), not after_text
                ids += self._encode_plain(piece, starts) if isinstance(piece, str) else [piece]
        return self._with_ends(ids, add_bos)

    def _with_ends(self, ids: list[int], add_bos: bool | None) -> list[int]:
        bos = self._add_bos if add_bos is None else add_bos
        if bos and self.bos is None:
            raise OptionError("add_bos is set and the vocabulary has no BOS token; leave it out")
        eos = add_bos is None and self._add_eos
        start = [self.bos] if bos and ids[:1] != [self.bos] else []
        end = [self._eos] if eos and ids[-1:] != [self._eos] else []
        return [id_ for id_ in (*start, *ids, *end) if id_ is not None]

    def decode(self, ids: Sequence[int], *, special: bool = False, previous: int | None = None) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD.

        special: control tokens are written as text; without it they, and unknown and unused ones, are left out.
        previous: the id before the first one, None at the start of a text (SentencePiece puts a space there).
        """
        pieces = []
        for token in ids:
            pieces.append(self.token_bytes(token, previous, special=special))
            previous = token
        return b"".join(pieces).decode(errors="replace")

    def token_bytes(self, token: int, previous: int | None = None, *, special: bool = False) -> bytes:
        """What one token adds to a text after the token `previous` (None: at the start)."""
        kind = self._type(token)
        text = self._tokens[token]
        if kind == NORMAL:
            return self._text_bytes(text, self.begins_with_space(previous))
        if kind == BYTE:
            return bytes.fromhex(text[3:5])
        return text.encode() if special or kind == USER_DEFINED else b""

    # A text as nothing but bytes, which is how a grammar sees it

    def begins_with_space(self, previous: int | None) -> bool:
        """Whether a text after the token `previous` is encoded with a space before it, which decoding takes away."""
        return self._puts_space and self._starts(previous)

    def inner_bytes(self, token: int) -> bytes:
        """What a token adds wherever it stands but at the begin of a text; empty where none, or not always the same.

        Byte tokens add nothing where encoding takes another token for the byte.
        """
        kind = self._type(token)
        text = self._tokens[token]
        if kind == NORMAL:
            return self._text_bytes(text, spaced=False)
        if kind == BYTE:
            byte = bytes.fromhex(text[3:5])
            return byte if byte >= b"\x80" or self._encode_plain(byte.decode(), starts=False) == [token] else b""
        # Where a space is put before texts, it is also put, and taken away, after a user-defined token.
        return text.encode() if kind == USER_DEFINED and not self._puts_space else b""

    def encode_inner(self, text: str) -> list[int]:
        """The ids of a text that goes on after another; only of tokens that have `inner_bytes`."""
        if self._puts_space:
            return self._encode_plain(text, starts=False)
        return self.encode_parts([text], add_bos=False)

    def _starts(self, previous: int | None) -> bool:
        return previous is None or self._type(previous) not in (NORMAL, BYTE)

    def ids_containing(self, text: str) -> list[int]:
        """Ids of the tokens that have the text inside."""
        wanted = text.encode()
        return [id_ for id_, spelled in enumerate(self._spellings) if wanted in spelled]

    @cached_property
    def _spellings(self) -> list[bytes]:
        """[V] what each token adds inside a text."""
        return [self.token_bytes(id_, previous=id_, special=True) for id_ in range(self.vocabulary_size)]

    def _type(self, token: int) -> int:
        if not isinstance(token, _INTEGERS) or not 0 <= token < self.vocabulary_size:
            raise OptionError(f"token id {token!r} is not in the vocabulary; ids are 0..{self.vocabulary_size - 1}")
        return self._types[token]

    @abstractmethod
    def _encode_plain(self, text: str, starts: bool) -> list[int]:
        """The ids of a plain text; starts: it stands at the start or right after a token matched by its spelling."""

    @abstractmethod
    def _text_bytes(self, token: str, spaced: bool) -> bytes:
        """What a normal token stands for; spaced: less the space that encoding put before it."""


def _checked(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise OptionError(f"the text holds half a surrogate pair ({error}); decode it as UTF-8 first") from error
    return text
