"""Texts written at random under a constraint, over vocabularies with tokens that span what a grammar keeps apart."""

import random
from functools import cache

import numpy as np

from edgellm.engine.constrain import Constrainer, Constraint, Matcher
from edgellm.tokenizer import Tokenizer, open_tokenizer
from edgellm.tokenizer.bpe import BYTES
from edgellm.tokenizer.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from tests.edgellm.tiny_vocabularies import bpe_vocabulary, spm_vocabulary

WORDS = ["na", "name", "tr", "true", "10", "é", "日本", "he", "hello", "ab", "aba", "ye", "yes", "yes,"]
JOINS = [
    '{"',
    '":',
    '":\u2581',
    ",\u2581",
    '",',
    '"}',
    "},",
    "]]",
    "\u2581{",
    '\u2581{"',
    '\u2581"',
    "\u2581yes",
    "\u2581\u2581",
]
SPECIAL = {"<|end|>": CONTROL, "<|im_end|>": CONTROL, "<|other|>": CONTROL, "<tool>": USER_DEFINED}
PREFERRED = [b"\n", b'"', b"}", b"]"]  # what brings a text to its end


@cache
def bpe() -> Tokenizer:
    characters = {byte: character for character, byte in BYTES.items()}
    words = ["".join(characters[byte] for byte in word.replace("\u2581", " ").encode()) for word in [*WORDS, *JOINS]]
    parts, merges = set(BYTES), []
    for word in words:  # from left to right, every part a token
        for end in range(2, len(word) + 1):
            if word[:end] not in parts:
                parts.add(word[:end])
                merges.append(f"{word[: end - 1]} {word[end - 1]}")
    tokens = [*BYTES, *(merge.replace(" ", "") for merge in merges), *SPECIAL]
    return open_tokenizer(
        bpe_vocabulary(
            tokens=tokens,
            token_type=[NORMAL] * (len(tokens) - len(SPECIAL)) + list(SPECIAL.values()),
            merges=merges,
            bos_token_id=None,
            eos_token_id=tokens.index("<|im_end|>"),
        )
    )


@cache
def spm() -> Tokenizer:
    characters = sorted(set("".join([*WORDS, *JOINS])))
    normal = [*characters, *(word for word in [*WORDS, *JOINS] if len(word) > 1)]
    control = [token for token, kind in SPECIAL.items() if kind == CONTROL]
    tokens = ["<unk>", *control, *(f"<0x{byte:02X}>" for byte in range(256)), *normal, "<tool>"]
    types = [UNKNOWN] + [CONTROL] * len(control) + [BYTE] * 256 + [NORMAL] * len(normal) + [USER_DEFINED]
    return open_tokenizer(
        spm_vocabulary(
            tokens=tokens,
            token_type=types,
            scores=[float(len(token)) for token in tokens],
            bos_token_id=None,
            eos_token_id=tokens.index("<|im_end|>"),
        )
    )


TOKENIZERS = {"bpe": bpe, "spm": spm}


@cache
def constrainer(kind: str) -> Constrainer:
    return Constrainer(TOKENIZERS[kind]())


def allowed(matcher: Matcher, tokenizer: Tokenizer) -> list[int]:
    """The tokens of the mask, which is checked to end where the vocabulary does."""
    mask = np.full(-(-tokenizer.vocabulary_size // 32), 0x5A5A5A5A, np.int32)
    matcher.fill_mask(mask)
    tokens = [int(token) for token in np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))]
    assert tokens and tokens[-1] < tokenizer.vocabulary_size
    return tokens


def walk(kind: str, constraint: Constraint, rng: random.Random, num_free: int = 25) -> list[int]:
    """Random tokens, with the stop token; behind the first `num_free` those that bring the text to its end."""
    tokenizer, matcher = TOKENIZERS[kind](), constrainer(kind).matcher(constraint)
    ids: list[int] = []
    while not ids or ids[-1] not in tokenizer.stop_ids:
        choices = allowed(matcher, tokenizer)
        if len(ids) >= num_free:
            best = min(_rank(tokenizer, token) for token in choices)
            choices = [token for token in choices if _rank(tokenizer, token) == best]
        ids.append(rng.choice(choices))
        matcher.accept(ids[-1])
        assert len(ids) < 1000, tokenizer.decode(ids)
    return ids


def _rank(tokenizer: Tokenizer, token: int) -> int:
    if token in tokenizer.stop_ids:
        return -1
    spelling = tokenizer.inner_bytes(token)
    return PREFERRED.index(spelling) if spelling in PREFERRED else len(PREFERRED)
