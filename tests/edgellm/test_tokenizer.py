"""Texts to ids and back: by hand on tiny vocabularies, and on other people's conformance cases."""

import random
from pathlib import Path

import pytest

from edgellm.converters.gguf_reader import open_gguf
from edgellm.errors import OptionError, TokenizerError
from edgellm.tokenizer import Vocabulary, open_tokenizer
from edgellm.tokenizer.bpe import BYTES
from edgellm.tokenizer.pretokenizers import PRETOKENIZERS, pretokenizer
from tests.edgellm.tiny_vocabularies import bpe_vocabulary, spm_vocabulary

SHARED = Path(__file__).parents[2].parent / "shared" / "tokenizers"
BPE, SPM = open_tokenizer(bpe_vocabulary()), open_tokenizer(spm_vocabulary())


def texts(tokenizer, text, **options):
    """The spellings of a text's tokens."""
    options = {"special": False} | options
    return [tokenizer.decode([id_], special=True, previous=BYTES["a"]) for id_ in tokenizer.encode(text, **options)]


def vocabulary_tokens(vocabulary, text, **options):
    ids = open_tokenizer(vocabulary).encode(text, **{"special": True, "add_bos": False} | options)
    return [vocabulary.tokens[id_] for id_ in ids]


@pytest.mark.parametrize("name", ["llama-spm", "phi-3", "gpt-2", "qwen2", "llama-bpe"])
def test_conformance(name):
    gguf = SHARED / f"ggml-vocab-{name}.gguf"
    if not gguf.exists():
        pytest.skip("the conformance cases (../shared/tokenizers) are not here")
    cases = Path(f"{gguf}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    expected = [[int(id_) for id_ in line.split()] for line in Path(f"{gguf}.out").read_text().split("\n")]
    vocabulary = Vocabulary.from_gguf(open_gguf(gguf).metadata)
    tokenizer = open_tokenizer(Vocabulary.from_bytes(vocabulary.to_bytes()))
    assert len(cases) == len(expected) == 47
    for text, ids in zip(cases, expected, strict=True):
        assert tokenizer.encode(text, special=False) == ids, text
        assert tokenizer.decode(ids) == text


# Byte-level BPE


def test_merges_are_applied_in_their_order():
    assert texts(BPE, "hello") == ["hello"]
    assert texts(BPE, "hell world") == ["hell", " w", "o", "r", "l", "d"]
    assert texts(BPE, "heo") == ["he", "o"]


def test_every_byte_is_a_token():
    assert [BPE.decode([id_]) for id_ in BPE.encode("\x00\t\n a\x7f", special=False)] == [
        "\x00",
        "\t",
        "\n",
        " ",
        "a",
        "\x7f",
    ]
    assert {BPE.token_bytes(id_) for id_ in range(256)} == {bytes([byte]) for byte in range(256)}


def test_a_byte_without_a_token_is_left_out():
    tokens = [token if token != "\u0101" else "no byte" for token in bpe_vocabulary().tokens]  # the byte 1
    tokenizer = open_tokenizer(bpe_vocabulary(tokens=tokens))
    assert tokenizer.decode(tokenizer.encode("h\x01e", special=False)) == "he"


@pytest.mark.parametrize("tokenizer", [BPE, SPM], ids=["bpe", "spm"])
def test_any_text_comes_back(tokenizer):
    rng = random.Random(1)
    alphabet = "hello  \n\t12<>|_aÄ字🦙\u0301\u200d\x00"
    for _ in range(300):
        text = "".join(rng.choices(alphabet, k=rng.randrange(20)))
        assert tokenizer.decode(tokenizer.encode(text, special=False)) == text


@pytest.mark.parametrize(
    ("pre", "tokens"),
    [
        ("gpt-2", ["hello", "123", "'", "s"]),
        ("smollm", ["hello", "1", "2", "3", "'", "s"]),
        ("qwen2", ["hello", "1", "2", "3", "'", "s"]),
        ("llama-bpe", ["hello", "123", "'", "s"]),
        ("default", ["hello", "123", "'", "s"]),
    ],
)
def test_digits_are_cut_as_the_family_does(pre, tokens):
    assert vocabulary_tokens(bpe_vocabulary(pre=pre), "hello123's") == tokens


# What lies between | and | is one word. From the families' published tokenizer files.
WORDS = {
    "gpt-2": "I|'m| here|,| 12345| ok|?!|\n\n  | x",
    "default": "I|'|m| here|,| |123|45| ok|?!|\n\n  | x",
    "falcon": "I|'|m| here|,| |123|45| ok|?!|\n\n  | x",
    "starcoder": "I|'m| here|,| |1|2|3|4|5| ok|?!|\n\n  | x",
    "llama-bpe": "I|'m| here|,| |123|45| ok|?!\n\n|  | x",
    "qwen2": "I|'m| here|,| |1|2|3|4|5| ok|?!\n\n|  | x",
    "tekken": "I|'m| here|,| |1|2|3|4|5| ok|?!\n\n|  | x",
    "gpt-4o": "I'm| here|,| |123|45| ok|?!\n\n|  | x",
    "deepseek-llm": "I|'|m| here|,| |12345| ok|?!|\n|\n|  | x",
    "deepseek-coder": "I|'|m| here|,| |1|2|3|4|5| ok|?!|\n|\n|  | x",
    "deepseek-v3": "I|'m| here|,| |123|45| ok|?!\n\n|  | x",
    "bloom": "I'm| here|,| 12345| ok|?!\n\n  | x",
    "viking": "I'm| here|,| |1|2|3|4|5| ok|?!\n\n  | x",
    "seed-coder": "I|'m| here|,| |1|2|3|4|5| ok|?!|\n\n|  | x",
    "qwen35": "I|'m| here|,| |1|2|3|4|5| ok|?!\n\n|  | x",
}


@pytest.mark.parametrize("pre", WORDS)
def test_words_are_cut_as_the_family_does(pre):
    tokenizer = open_tokenizer(bpe_vocabulary(pre=pre))
    cutter = tokenizer._engine.pre_tokenizer
    words = [bytes(BYTES[c] for c in word).decode() for word, _ in cutter.pre_tokenize_str(WORDS[pre].replace("|", ""))]
    assert "|".join(words) == WORDS[pre]


@pytest.mark.parametrize("pre", PRETOKENIZERS)
def test_every_family_compiles_and_loses_nothing(pre):
    tokenizer = open_tokenizer(bpe_vocabulary(pre=pre))
    text = "Hello, 12345 worlds! I'LL Straßenbahn ÄÖ \uff45 \uff11 字かな \n\n\tΩ ǅ 한국 x_y (a.b)…  "
    assert tokenizer.decode(tokenizer.encode(text, special=False)) == text


def test_an_unknown_family_is_an_error_that_names_the_known_ones():
    with pytest.raises(TokenizerError, match=r"'nonesuch'.*llama-bpe.*smollm"):
        pretokenizer("nonesuch")


def test_a_whole_word_ignores_merges_where_the_family_does():
    tokens = [token if token != "12" else "ab" for token in bpe_vocabulary().tokens]
    merges = ["h e", "l l"]
    taken = {
        pre: vocabulary_tokens(bpe_vocabulary(pre=pre, tokens=tokens, merges=merges), "ab")
        for pre in ("gpt-2", "llama-bpe")
    }
    assert taken == {"gpt-2": ["a", "b"], "llama-bpe": ["ab"]}


# Special tokens


def test_control_tokens_are_read_only_where_asked():
    text = "<|im_start|>hello<|im_end|>"
    assert texts(BPE, text, special=True) == ["<|im_start|>", "hello", "<|im_end|>"]
    plain = BPE.encode(text, special=False)
    assert not set(plain) & set(BPE.encode("<|im_start|><|im_end|><|im", special=True))
    assert BPE.decode(plain) == text
    plain = SPM.encode("<s>hello</s><unk>", special=False)
    assert not set(plain) & {0, 1, 2}
    assert SPM.decode(plain) == "<s>hello</s><unk>"


def test_a_control_token_is_no_plain_word_even_where_merges_are_ignored():
    tokens = [token if token != "<|im" else "stop" for token in bpe_vocabulary().tokens]
    tokenizer = open_tokenizer(bpe_vocabulary(pre="llama-bpe", tokens=tokens))
    assert len(tokenizer.encode("stop", special=False)) == 4
    assert tokenizer.encode("stop", special=True, add_bos=False) == [tokens.index("stop")]


def test_the_longest_spelling_wins():
    assert texts(BPE, "<|im_start|><|im<|im_end|", special=True) == [
        "<|im_start|>",
        "<|im",
        "<|im",
        "_",
        "e",
        "n",
        "d",
        "|",
    ]


def test_user_defined_tokens_are_always_read():
    for special in (True, False):
        assert texts(BPE, "he<tool>he", special=special) == ["he", "<tool>", "he"]
        assert texts(SPM, "he<tool>", special=special, add_bos=False)[-1] == "<tool>"
    assert BPE.decode(BPE.encode("he<tool>", special=False)) == "he<tool>"


def test_begin_and_end_tokens_are_put_as_the_vocabulary_says_and_never_twice():
    both = open_tokenizer(bpe_vocabulary(add_bos_token=True, add_eos_token=True))
    bos, eos = both.encode("", special=True)
    assert both.bos == bos
    he = both.encode("he", special=False)
    assert both.encode("he", special=True) == [bos, *he, eos]
    assert both.encode("<|im_start|>he<|im_end|>", special=True) == [bos, *he, eos]
    assert both.encode("he", special=True, add_bos=False) == he
    assert both.encode("he", special=False, add_bos=True) == [bos, *he]
    assert BPE.encode("he", special=True) == he
    with pytest.raises(OptionError, match="no BOS"):
        open_tokenizer(bpe_vocabulary(bos_token_id=None)).encode("he", special=False, add_bos=True)


def test_what_ends_a_turn():
    assert {BPE.decode([id_], special=True) for id_ in BPE.stop_ids} == {"<|im_end|>"}
    assert open_tokenizer(spm_vocabulary(eot_token_id=9)).stop_ids == {2, 9}
    assert open_tokenizer(bpe_vocabulary(eos_token_id=None)).stop_ids == BPE.stop_ids  # known by its name
    assert (BPE.bos_token, BPE.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert open_tokenizer(bpe_vocabulary(bos_token_id=None)).bos_token == ""


# SentencePiece


def test_a_space_is_put_before_a_text_and_after_matched_tokens():
    vocabulary = spm_vocabulary()
    assert vocabulary_tokens(vocabulary, "hello") == ["▁hello"]
    assert vocabulary_tokens(vocabulary, " hello") == ["▁", "▁hello"]
    assert vocabulary_tokens(vocabulary, "<s>hello</s>a") == ["<s>", "▁hello", "</s>", "▁a"]
    assert vocabulary_tokens(vocabulary, "a<tool>a") == ["▁a", "<tool>", "▁a"]
    assert vocabulary_tokens(vocabulary, "") == []
    two_pieces = SPM.encode_parts(["hell", "o"], add_bos=False)
    assert [vocabulary.tokens[id_] for id_ in two_pieces] == ["▁", "hell", "o"]
    bare = spm_vocabulary(add_space_prefix=False)
    assert vocabulary_tokens(bare, "<s>hello") == ["<s>", "hello"]


def test_decoding_takes_the_put_spaces_away_again():
    for text in ("hello", " hello", "<s>hello</s>a", "a<tool> a", "  "):
        assert SPM.decode(SPM.encode(text, special=True, add_bos=False), special=True) == text
    bare = open_tokenizer(spm_vocabulary(add_space_prefix=False))
    assert bare.decode(bare.encode(" hello", special=False)) == " hello"


def test_a_text_that_goes_on_keeps_its_space():
    hello = SPM.encode("hello", special=False)
    assert SPM.decode(hello) == "hello"
    assert SPM.decode(hello, previous=hello[-1]) == " hello"
    assert SPM.decode(hello, previous=1) == "hello"


def test_characters_without_a_token_are_spelled_in_bytes():
    assert vocabulary_tokens(spm_vocabulary(), "é") == ["▁", "<0xC3>", "<0xA9>"]
    assert SPM.decode(SPM.encode("é\n", special=False)) == "é\n"


def test_the_unknown_token_may_be_any():
    types = list(spm_vocabulary().types)
    types[0], types[-1] = 3, 2
    for unknown in (None, len(types) - 1):
        tokenizer = open_tokenizer(spm_vocabulary(token_type=types, unknown_token_id=unknown))
        assert tokenizer.decode(tokenizer.encode("hello é", special=False)) == "hello é"
    with pytest.raises(TokenizerError, match="unknown token"):
        open_tokenizer(spm_vocabulary(token_type=[*types[:-1], 1], unknown_token_id=None))


def test_without_byte_tokens_characters_become_the_unknown_token():
    tokens = [token.replace("<0x", "<1x") for token in spm_vocabulary().tokens]
    types = [1 if kind == 6 else kind for kind in spm_vocabulary().types]
    assert vocabulary_tokens(spm_vocabulary(tokens=tokens, token_type=types), "é") == ["▁", "<unk>"]
    types[0], types[-1] = 3, 2
    other = spm_vocabulary(tokens=tokens, token_type=types, unknown_token_id=len(types) - 1)
    assert vocabulary_tokens(other, "é") == ["▁", "<tool>"]


# Decoding


@pytest.mark.parametrize("tokenizer", [BPE, SPM], ids=["bpe", "spm"])
def test_control_tokens_are_left_out_or_written(tokenizer):
    ids = tokenizer.encode("he", special=False)
    ends = sorted(tokenizer.stop_ids)
    assert tokenizer.decode([*ends, *ids, *ends]) == "he"
    assert tokenizer.decode([*ids, *ends], special=True) == "he" + tokenizer.eos_token


def test_unknown_and_unused_tokens_have_no_text():
    assert SPM.decode([0]) == ""
    assert SPM.decode([0], special=True) == "<unk>"
    last = len(bpe_vocabulary().tokens) - 1
    unused = open_tokenizer(bpe_vocabulary(token_type=[*bpe_vocabulary().types[:last], 5]))
    assert (unused.decode([last]), unused.decode([last], special=True)) == ("", "<tool>")


def test_bytes_that_are_no_text_become_replacement_characters():
    half = BPE.encode("字", special=False)[:2]
    he = BPE.encode("he", special=False)
    assert BPE.decode(half) == "\ufffd"
    assert BPE.decode([*half, *he]) == "\ufffdhe"
    assert BPE.decode([BPE.encode("字", special=False)[1]] * 2) == "\ufffd\ufffd"


@pytest.mark.parametrize("bad", [-1, 10**9, 1.0, "a", None])
def test_an_id_outside_the_vocabulary_is_an_error_that_names_it(bad):
    with pytest.raises(OptionError, match=f"{bad!r}.*0..{BPE.vocabulary_size - 1}"):
        BPE.decode([bad])


@pytest.mark.parametrize("tokenizer", [BPE, SPM], ids=["bpe", "spm"])
def test_half_a_surrogate_pair_is_an_error(tokenizer):
    with pytest.raises(OptionError, match="surrogate"):
        tokenizer.encode("a\ud800", special=False)
