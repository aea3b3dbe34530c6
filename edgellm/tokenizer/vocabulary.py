"""What a tokenizer is made of: the tokens, their types, and how texts become tokens.

A converter translates a foreign vocabulary into `Vocabulary` once; tokenizers know nothing else.
Token types, as in GGUF:

    NORMAL        made from ordinary text
    UNKNOWN       stands for what cannot be written otherwise
    CONTROL       steers the model (<|im_start|>); read from a text only where asked, not shown when decoding
    USER_DEFINED  a whole word to the model (<tool_call>, runs of spaces): matched in every text before anything else
    UNUSED        a place that is never written
    BYTE          one byte, spelled <0x0A>
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self, TypeVar

import numpy as np

from edgellm.errors import TokenizerError
from edgellm.tokenizer.pretokenizers import pretokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

# Texts with which families end a turn or a document. Some files give such a token as an ordinary one; it never is.
END_TEXTS = frozenset(
    [
        *("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>", "<|endoftext|>"),
        *("<|end_of_text|>", "<EOT>", "<|EOT|>", "[EOT]", "<|return|>", "<end_of_utterance>"),
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    ]
)

_BYTE_TEXT = re.compile("<0x[0-9A-F]{2}>")
_T = TypeVar("_T", str, int, bool)
_KINDS = {"gpt2": "bpe", "llama": "spm"}  # tokenizer.ggml.model -> kind


@dataclass(frozen=True)
class Vocabulary:
    """V tokens; the index of a token is its id. Raises TokenizerError where the parts do not fit together."""

    kind: str  # "bpe" (byte-level BPE) or "spm" (SentencePiece)
    pre: str  # name of the pre-tokenizer, as in pretokenizers.py; "default" for "spm"
    tokens: tuple[str, ...]  # [V] as GGUF writes them: "Ġthe" (bpe), "▁the" (spm)
    types: tuple[int, ...]  # [V]
    scores: tuple[float, ...] | None  # [V] spm: higher is merged first
    merges: tuple[str, ...] | None  # bpe: "left right", first is merged first
    bos: int | None
    eos: int | None
    unknown: int | None
    eot: int | None  # a further end-of-turn token
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool  # spm: a space is put before every text

    def __post_init__(self) -> None:
        _check(self.kind in _KINDS.values(), f"kind {self.kind!r} is neither 'bpe' nor 'spm'")
        self._check_tokens()
        for name in ("bos", "eos", "unknown", "eot"):
            token = getattr(self, name)
            _check(
                token is None or (type(token) is int and 0 <= token < len(self.tokens)),
                f"{name} {token!r} is not a token id",
            )
        for name in ("add_bos", "add_eos", "add_space_prefix"):
            _check(type(getattr(self, name)) is bool, f"{name} {getattr(self, name)!r} is not true or false")
        _check(not (self.add_bos and self.bos is None), "add_bos is set and there is no bos token")
        _check(not (self.add_eos and self.eos is None), "add_eos is set and there is no eos token")
        if self.kind == "bpe":
            pretokenizer(self.pre)
            self._check_merges()
        else:
            self._check_scores()

    def _check_tokens(self) -> None:
        _check(set(map(type, self.tokens)) == {str} and all(self.tokens), "tokens are missing, empty or no texts")
        _check(_is_unicode("".join(self.tokens)), "a token holds half a surrogate pair")
        if len(set(self.tokens)) != len(self.tokens):
            twice = next(token for token, count in Counter(self.tokens).items() if count > 1)
            raise TokenizerError(f"vocabulary: the token {twice!r} is there twice")
        _check(len(self.types) == len(self.tokens), f"{len(self.tokens)} tokens and {len(self.types)} types")
        _check(set(map(type, self.types)) == {int}, "a token type is not an integer")
        strange = set(self.types) - set(range(NORMAL, BYTE + 1))
        _check(not strange, f"there are token types {strange}, not in 1..6")
        for text in self.texts_of(BYTE):
            _check(_BYTE_TEXT.fullmatch(text) is not None, f"a byte token is spelled {text!r}, not like <0x0A>")

    def _check_merges(self) -> None:
        _check(self.merges is not None, "kind 'bpe' needs merges")
        for merge in self.merges or ():
            if type(merge) is not str or merge.count(" ") != 1 or merge[0] == " " or merge[-1] == " " or "\n" in merge:
                raise TokenizerError(f"vocabulary: the merge {merge!r} is not two texts with a space between")

    def _check_scores(self) -> None:
        scores = self.scores or ()
        _check(len(scores) == len(self.tokens), f"{len(self.tokens)} tokens and {len(scores)} scores")
        _check(set(map(type, scores)) == {float} and all(map(math.isfinite, scores)), "a score is not a finite number")

    def texts_of(self, *types: int) -> dict[str, int]:
        """Text -> id of the tokens of these types."""
        if not set(types) & set(self.types):
            return {}
        return {
            text: id_ for id_, (text, kind) in enumerate(zip(self.tokens, self.types, strict=True)) if kind in types
        }

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object]) -> Self:
        """The vocabulary in a GGUF file's metadata (name -> Python value; lists may be numpy arrays)."""
        reader = _Metadata(metadata)
        model = reader.get("model", str)
        if model not in _KINDS:
            raise TokenizerError(f"tokenizer.ggml.model is {model!r}; this version reads {', '.join(sorted(_KINDS))}")
        kind = _KINDS[model]
        pre = reader.get("pre", str) if kind == "bpe" else "default"
        if pre is None:
            raise TokenizerError(
                "tokenizer.ggml.pre is missing: convert the model to GGUF again with a current converter"
            )
        tokens = tuple(token or f"[EMPTY_{id_}]" for id_, token in enumerate(reader.array("tokens") or ()))
        types = list(reader.array("token_type") or [NORMAL] * len(tokens))
        bos = reader.get("bos_token_id", int)
        add_bos = reader.get("add_bos_token", bool)
        if add_bos is None:
            add_bos = bos is not None and (kind == "spm" or pretokenizer(pre).add_bos)
        space = reader.get("add_space_prefix", bool)
        return cls(
            kind=kind,
            pre=pre,
            tokens=tokens,
            types=_end_tokens_are_control(tokens, types),
            scores=tuple(reader.array("scores") or ()) if kind == "spm" else None,
            merges=tuple(reader.array("merges") or ()) if kind == "bpe" else None,
            bos=bos,
            eos=reader.get("eos_token_id", int),
            unknown=reader.get("unknown_token_id", int),
            eot=reader.get("eot_token_id", int),
            add_bos=add_bos,
            add_eos=reader.get("add_eos_token", bool) or False,
            add_space_prefix=kind == "spm" if space is None else space,
        )

    def to_bytes(self) -> bytes:
        """JSON; the merges are one text with a line each, which loads several times faster than a list."""
        data = asdict(self)
        if self.merges is not None:
            data["merges"] = "\n".join(self.merges)
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """What `to_bytes` wrote, with any white space after it."""
        try:
            entries = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise TokenizerError(f"vocabulary: not JSON ({error}); pull or convert the model again") from error
        names = {field.name for field in fields(cls)}
        if not isinstance(entries, dict) or set(entries) != names:
            found = sorted(entries) if isinstance(entries, dict) else type(entries).__name__
            raise TokenizerError(f"vocabulary: expected the entries {sorted(names)}, found {found}")
        if isinstance(entries["merges"], str):
            entries["merges"] = entries["merges"].split("\n") if entries["merges"] else []
        for name in ("tokens", "types", "scores", "merges"):
            value = entries[name]
            if not isinstance(value, list) and not (value is None and name in ("scores", "merges")):
                raise TokenizerError(f"vocabulary: {name} is a {type(value).__name__}, not a list")
            entries[name] = value if value is None else tuple(value)
        for name in ("kind", "pre"):
            _check(type(entries[name]) is str, f"{name} {entries[name]!r} is not a text")
        return cls(**entries)


class _Metadata:
    """Typed access to the entries tokenizer.ggml.*"""

    def __init__(self, metadata: Mapping[str, object]) -> None:
        self._metadata = metadata

    def get(self, name: str, kind: type[_T]) -> _T | None:
        value = self._metadata.get(f"tokenizer.ggml.{name}")
        if value is None or isinstance(value, kind):
            return value
        raise TokenizerError(f"tokenizer.ggml.{name} is {value!r}, not of type {kind.__name__}")

    def array(self, name: str) -> list[Any] | None:
        value = self._metadata.get(f"tokenizer.ggml.{name}")
        if isinstance(value, np.ndarray):
            value = list(value.tolist())
        if value is None or isinstance(value, list):
            return value
        raise TokenizerError(f"tokenizer.ggml.{name} is {value!r}, not a list")


def _end_tokens_are_control(tokens: tuple[str, ...], types: list[int]) -> tuple[int, ...]:
    if len(tokens) == len(types):
        for id_ in (id_ for id_, token in enumerate(tokens) if token in END_TEXTS):
            types[id_] = CONTROL if types[id_] in (NORMAL, USER_DEFINED) else types[id_]
    return tuple(types)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check(good: bool, message: str) -> None:
    if not good:
        raise TokenizerError(f"vocabulary: {message}")
