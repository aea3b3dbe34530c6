"""SentencePiece BPE: the vocabulary is written as the model file that the `sentencepiece` package reads."""

import struct

from sentencepiece import SentencePieceProcessor

from edgellm.errors import TokenizerError
from edgellm.tokenizer.tokenizer import Tokenizer
from edgellm.tokenizer.vocabulary import BYTE, CONTROL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary

SPACE = "\u2581"  # ▁, how tokens write a space


class SPMTokenizer(Tokenizer):
    """A space is put before a text at the start or after a matched token where the vocabulary says so."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary)
        try:
            self._engine = SentencePieceProcessor(model_proto=model_proto(vocabulary))
        except (RuntimeError, ValueError) as error:
            raise TokenizerError(f"vocabulary: sentencepiece refuses it ({error})") from error

    def _encode_plain(self, text: str, starts: bool) -> list[int]:
        prefix = " " if starts and self._puts_space else ""
        ids: list[int] = self._engine.encode(prefix + text)
        return ids

    def _text_bytes(self, token: str, spaced: bool) -> bytes:
        if spaced:
            token = token.removeprefix(SPACE)
        return token.replace(SPACE, " ").encode()


def model_proto(vocabulary: Vocabulary) -> bytes:
    """The vocabulary as a serialized sentencepiece.ModelProto.

    ModelProto      1 pieces*           2 trainer_spec      3 normalizer_spec
    SentencePiece   1 piece: string     2 score: float      3 type: enum, as GGUF numbers them
    TrainerSpec     3 model_type: 2 is BPE                  35 byte_fallback: bool
    NormalizerSpec  1 name: string      3 add_dummy_prefix: bool    4 remove_extra_whitespaces: bool
    """
    types = _piece_types(vocabulary)
    pieces = []
    for token, score, kind in zip(vocabulary.tokens, vocabulary.scores or (), types, strict=True):
        text = token.encode()
        body = b"\x0a" + _varint(len(text)) + text + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind])
        pieces.append(b"\x0a" + _varint(len(body)) + body)
    trainer = b"\x18\x02" + _varint(35 << 3) + bytes([BYTE in types])
    normalizer = b"\x0a\x08identity" + b"\x18\x00" + b"\x20\x00"
    return b"".join([*pieces, b"\x12", _varint(len(trainer)), trainer, b"\x1a", _varint(len(normalizer)), normalizer])


def _piece_types(vocabulary: Vocabulary) -> list[int]:
    """The types for SentencePiece, which wants exactly one unknown token and finds no token by its spelling here."""
    types = list(vocabulary.types)
    unknown = vocabulary.unknown
    if unknown is None:
        if UNKNOWN not in types:
            raise TokenizerError("vocabulary: SentencePiece needs an unknown token, and there is none")
        unknown = types.index(UNKNOWN)
    translated = {UNKNOWN: UNUSED, USER_DEFINED: CONTROL}
    types = [translated.get(kind, kind) for kind in types]
    types[unknown] = UNKNOWN
    return types


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
