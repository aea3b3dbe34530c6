"""A vocabulary is read whole or refused with the reason."""

import json

import numpy as np
import pytest

from edgellm.errors import TokenizerError
from edgellm.tokenizer import Vocabulary, open_tokenizer
from edgellm.tokenizer.vocabulary import CONTROL, NORMAL, USER_DEFINED
from tests.edgellm.tiny_vocabularies import bpe_metadata, bpe_vocabulary, spm_metadata, spm_vocabulary


@pytest.mark.parametrize("vocabulary", [bpe_vocabulary(), spm_vocabulary(), bpe_vocabulary(merges=[])])
def test_what_is_written_is_read_again(vocabulary):
    assert Vocabulary.from_bytes(vocabulary.to_bytes() + b" " * 63) == vocabulary


def test_lists_may_be_arrays():
    metadata = spm_metadata()
    for name in ("token_type", "scores"):
        key = f"tokenizer.ggml.{name}"
        metadata[key] = np.array(metadata[key], np.float32 if name == "scores" else np.int32)
    assert Vocabulary.from_gguf(metadata) == spm_vocabulary()


def test_what_a_file_leaves_out():
    spm = spm_vocabulary()
    assert (spm.pre, spm.add_bos, spm.add_eos, spm.add_space_prefix) == ("default", True, False, True)
    bpe = bpe_vocabulary(add_bos_token=None)
    assert (bpe.add_bos, bpe.add_eos, bpe.add_space_prefix) == (False, False, False)
    assert bpe_vocabulary(pre="llama-bpe", add_bos_token=None).add_bos
    assert not bpe_vocabulary(pre="llama-bpe", add_bos_token=None, bos_token_id=None).add_bos
    assert set(bpe_vocabulary(token_type=None).types) == {NORMAL, CONTROL}  # <|im_end|> is known to end a turn


def test_tokens_that_end_a_turn_are_control_tokens_whatever_the_file_says():
    types = [USER_DEFINED if kind == CONTROL else kind for kind in bpe_vocabulary().types]
    vocabulary = bpe_vocabulary(token_type=types)
    controls = [token for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == CONTROL]
    assert controls == ["<|im_end|>"]


def test_empty_tokens_get_a_name():
    tokens = list(bpe_vocabulary().tokens)
    tokens[-1] = ""
    assert bpe_vocabulary(tokens=tokens).tokens[-1] == f"[EMPTY_{len(tokens) - 1}]"


_TOKENS = list(bpe_vocabulary().tokens)
_BYTE_TYPES = list(spm_vocabulary().types[:-1])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": "bert"}, "bert"),
        ({"model": None}, "None"),
        ({"model": 3}, "3"),
        ({"pre": "surprise"}, "surprise.*qwen2"),
        ({"pre": None}, "pre is missing"),
        ({"tokens": None}, "tokens"),
        ({"tokens": "abc"}, "'abc'"),
        ({"tokens": [1, 2]}, "no texts"),
        ({"tokens": [*_TOKENS[:-1], "h"]}, "'h' is there twice"),
        ({"tokens": [*_TOKENS[:-1], "\ud800"]}, "surrogate"),
        ({"token_type": [1, 2]}, "and 2 types"),
        ({"token_type": [1] * (len(_TOKENS) + 1)}, "types"),
        ({"token_type": [9] * len(_TOKENS)}, "9"),
        ({"token_type": [1.0] * len(_TOKENS)}, "not an integer"),
        ({"token_type": [[1]] * len(_TOKENS)}, "not an integer"),
        ({"token_type": [6] * len(_TOKENS)}, "byte token"),
        ({"merges": ["a b c"]}, "'a b c'"),
        ({"merges": ["ab"]}, "'ab'"),
        ({"merges": ["a "]}, "'a '"),
        ({"merges": ["a\nx b"]}, "two texts"),
        ({"merges": [7]}, "7"),
        ({"bos_token_id": len(_TOKENS)}, f"bos {len(_TOKENS)}"),
        ({"eos_token_id": -1}, "eos -1"),
        ({"eot_token_id": True}, "True"),
        ({"unknown_token_id": 1.5}, "1.5"),
        ({"add_bos_token": 1}, "1"),
        ({"bos_token_id": None, "add_bos_token": True}, "no bos"),
        ({"eos_token_id": None, "add_eos_token": True}, "no eos"),
    ],
)
def test_a_broken_bpe_vocabulary_is_refused(changes, named):
    with pytest.raises(TokenizerError, match=named):
        bpe_vocabulary(**changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"scores": None}, "and 0 scores"),
        ({"scores": [0.0]}, "and 1 scores"),
        ({"scores": [float("nan")] * len(spm_vocabulary().tokens)}, "finite"),
        ({"scores": ["x"] * len(spm_vocabulary().tokens)}, "finite"),
    ],
)
def test_a_broken_spm_vocabulary_is_refused(changes, named):
    with pytest.raises(TokenizerError, match=named):
        spm_vocabulary(**changes)


@pytest.mark.parametrize("merge", ["\u4e00 a", "< |im_end|>", "<|im _end|>"])
def test_merges_that_do_not_fit_the_tokens_are_refused(merge):
    with pytest.raises(TokenizerError, match="do not fit"):
        open_tokenizer(bpe_vocabulary(merges=[merge]))


def test_an_spm_vocabulary_must_be_one_that_sentencepiece_takes():
    types = [CONTROL if kind == 2 else kind for kind in spm_vocabulary().types]
    with pytest.raises(TokenizerError, match="unknown token"):
        open_tokenizer(spm_vocabulary(token_type=types, unknown_token_id=None))
    few_bytes = [
        NORMAL if token == "<0x41>" else kind for token, kind in zip(spm_vocabulary().tokens, types, strict=True)
    ]
    with pytest.raises(TokenizerError, match="sentencepiece refuses"):
        open_tokenizer(spm_vocabulary(token_type=few_bytes))


def _entries(**changes):
    entries = json.loads(bpe_vocabulary().to_bytes())
    return json.dumps(entries | changes).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        _entries(extra=1),
        _entries(kind="wpm"),
        _entries(kind=None),
        _entries(pre=[]),
        _entries(tokens="abc"),
        _entries(tokens=[]),
        _entries(tokens={"a": 1}),
        _entries(types=None),
        _entries(merges=5),
        _entries(merges=None),
        _entries(merges="a"),
        _entries(bos="x"),
        _entries(add_bos=None),
    ],
)
def test_broken_bytes_are_refused(data):
    with pytest.raises(TokenizerError, match=r"vocabulary|pre-tokenizer"):
        Vocabulary.from_bytes(data)


def test_the_metadata_is_not_changed():
    metadata = bpe_metadata(token_type=[USER_DEFINED] * len(_TOKENS))
    Vocabulary.from_gguf(metadata)
    assert set(metadata["tokenizer.ggml.token_type"]) == {USER_DEFINED}
