"""Streamed text is decoded text."""

import random
from pathlib import Path

import pytest

from edgellm.converters.gguf_reader import open_gguf
from edgellm.errors import OptionError
from edgellm.tokenizer import StreamDecoder, Vocabulary, open_tokenizer
from tests.edgellm.tiny_vocabularies import bpe_vocabulary, spm_vocabulary

SHARED = Path(__file__).parents[2].parent / "shared" / "tokenizers"
BPE, SPM = open_tokenizer(bpe_vocabulary()), open_tokenizer(spm_vocabulary())


def streamed(tokenizer, ids, **options):
    decoder = StreamDecoder(tokenizer, **options)
    return [decoder.feed(id_) for id_ in ids] + [decoder.flush()]


def check_random_ids(tokenizer, rounds, highest=None):
    rng = random.Random(2)
    for _ in range(rounds):
        ids = [rng.randrange(highest or tokenizer.vocabulary_size) for _ in range(rng.randrange(40))]
        special, previous = rng.random() < 0.5, rng.choice([None, *ids])
        pieces = streamed(tokenizer, ids, special=special, previous=previous)
        assert "".join(pieces) == tokenizer.decode(ids, special=special, previous=previous)


@pytest.mark.parametrize("tokenizer", [BPE, SPM], ids=["bpe", "spm"])
def test_random_ids(tokenizer):
    check_random_ids(tokenizer, 500)
    check_random_ids(tokenizer, 500, highest=256)  # mostly bytes that are no UTF-8


@pytest.mark.parametrize("name", ["llama-spm", "gpt-2"])
def test_random_ids_of_real_vocabularies(name):
    gguf = SHARED / f"ggml-vocab-{name}.gguf"
    if not gguf.exists():
        pytest.skip("the vocabularies (../shared/tokenizers) are not here")
    tokenizer = open_tokenizer(Vocabulary.from_gguf(open_gguf(gguf).metadata))
    check_random_ids(tokenizer, 200)
    check_random_ids(tokenizer, 200, highest=259)


@pytest.mark.parametrize("tokenizer", [BPE, SPM], ids=["bpe", "spm"])
def test_a_character_comes_whole_and_as_soon_as_it_can(tokenizer):
    pieces = streamed(tokenizer, tokenizer.encode("e字🦙e", special=False))
    assert [piece for piece in pieces if piece] == ["e", "字", "🦙", "e"]
    assert pieces[-2:] == ["e", ""]


def test_a_character_that_never_ends_is_replaced_at_the_end():
    ids = BPE.encode("e🦙", special=False)[:-1]
    assert streamed(BPE, ids) == ["e", "", "", "", "\ufffd"]


def test_the_first_space_of_sentencepiece_is_left_out_only_at_the_start():
    hello = SPM.encode("hello", special=False)
    assert streamed(SPM, hello + hello) == ["hello", " hello", ""]
    assert streamed(SPM, hello, previous=hello[0]) == [" hello", ""]


def test_an_id_outside_the_vocabulary_is_an_error():
    with pytest.raises(OptionError, match="999999"):
        StreamDecoder(BPE).feed(999999)
