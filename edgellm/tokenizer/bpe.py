"""Byte-level BPE, by the `tokenizers` package: each of the 256 bytes is written as a printable character."""

import codecs

from tokenizers import Regex
from tokenizers import Tokenizer as Engine
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split

from edgellm.errors import TokenizerError
from edgellm.tokenizer.pretokenizers import pretokenizer
from edgellm.tokenizer.tokenizer import Tokenizer
from edgellm.tokenizer.vocabulary import BYTE, NORMAL, USER_DEFINED, Vocabulary


def _byte_characters() -> dict[str, int]:
    """Character -> byte: printable Latin-1 characters are themselves, the other bytes follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(rest)}


BYTES = _byte_characters()
_MAP = {ord(character): byte for character, byte in BYTES.items()}


class BPETokenizer(Tokenizer):
    """A byte whose character is not in the vocabulary is left out of the ids, as the models' own tokenizers do it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary)
        family = pretokenizer(vocabulary.pre)
        self._engine = Engine(_model(vocabulary, family.ignore_merges))
        cuts: list[PreTokenizer] = [Split(Regex(pattern), "isolated") for pattern in family.patterns]
        self._engine.pre_tokenizer = Sequence([*cuts, ByteLevel(add_prefix_space=False, use_regex=False)])

    def _encode_plain(self, text: str, starts: bool) -> list[int]:
        return self._engine.encode(text, add_special_tokens=False).ids

    def _text_bytes(self, token: str, spaced: bool) -> bytes:
        try:
            return codecs.charmap_encode(token, "strict", _MAP)[0]
        except UnicodeEncodeError:
            return token.encode()


def _model(vocabulary: Vocabulary, ignore_merges: bool) -> BPE:
    # Control tokens are unknown to the model, so that no plain text can ever become one.
    tokens = vocabulary.texts_of(NORMAL, USER_DEFINED, BYTE)
    merges = vocabulary.merges or ()
    halves = " ".join(merges).split(" ") if merges else []
    try:
        return BPE(tokens, list(zip(halves[::2], halves[1::2], strict=True)), ignore_merges=ignore_merges)
    except Exception as error:  # the package raises no narrower one
        raise TokenizerError(f"vocabulary: the merges do not fit the tokens ({error})") from error
