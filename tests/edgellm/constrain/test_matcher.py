"""What a matcher allows, and that it forgets what is rolled back."""

import random

import pytest

pytest.importorskip("llguidance", reason="llguidance is not installed: pip install 'edgellm[constrain]'")

from edgellm.engine.constrain import Choice, Constraint, Grammar, JsonObject, JsonSchema, Matcher, Regex
from edgellm.errors import GrammarError, OptionError
from edgellm.tokenizer import Tokenizer
from tests.edgellm.constrain.walking import TOKENIZERS, allowed, constrainer, walk

RECORD = JsonSchema(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 6}, "yes": {"enum": ["hello", "he", 10]}},
        "required": ["name", "yes"],
        "additionalProperties": False,
    }
)
NESTED = Grammar('root ::= "{" root "}" | [a-c]{1,3} "hello" | "yes" ', "gbnf")
CONSTRAINTS = {"record": RECORD, "object": JsonObject(), "nested": NESTED, "regex": Regex("(ab|aba)*, (yes|no){1,2}")}
TEXTS = ("yes", "yes, so", "ye", "hello", "he said", "日本", '{"name": 10}')


def after(kind: str, constraint: Constraint, ids: list[int]) -> Matcher:
    matcher = constrainer(kind).matcher(constraint)
    for token in ids:
        matcher.accept(token)
    return matcher


def spelled(tokenizer: Tokenizer, ids: list[int]) -> bytes:
    return b"".join(map(tokenizer.inner_bytes, ids))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_mask_is_what_trying_every_token_finds(kind):
    tokenizer, rng = TOKENIZERS[kind](), random.Random(1)
    ends = {(b" " if kind == "spm" else b"") + text.encode() for text in TEXTS}
    for _ in range(30):
        ids = walk(kind, Choice(TEXTS), rng)[:-1]
        for length in range(len(ids) + 1):
            done = spelled(tokenizer, ids[:length])
            spellings = {token: tokenizer.inner_bytes(token) for token in range(tokenizer.vocabulary_size)}
            fits = {t for t, new in spellings.items() if new and any(end.startswith(done + new) for end in ends)}
            stops = tokenizer.stop_ids if done in ends else frozenset()
            matcher = after(kind, Choice(TEXTS), ids[:length])
            assert matcher.may_stop == (done in ends)
            if forced := matcher.forced():
                assert allowed(matcher, tokenizer) == forced[:1] and forced[0] in fits
            else:
                assert set(allowed(matcher, tokenizer)) == fits | stops


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_forced_tokens_are_those_that_the_masks_leave(kind, name):
    tokenizer, rng = TOKENIZERS[kind](), random.Random(2)
    most = 0
    for _ in range(30):
        matcher = constrainer(kind).matcher(CONSTRAINTS[name])
        while not matcher.is_finished:
            forced = matcher.forced()
            most = max(most, len(forced))
            assert matcher.validate(forced) == len(forced)
            for token in forced:
                assert allowed(matcher, tokenizer) == [token]
                matcher.accept(token)
            assert matcher.forced() == []
            matcher.accept(min(allowed(matcher, tokenizer), key=lambda token: (rng.random() < 0.9, rng.random())))
            if rng.random() < 0.05:
                break
    assert most >= (2 if name == "record" else 0)


def test_forced_text_is_everything_that_has_only_one_continuation():
    """Up to tokens at its end that could go on differently: byte by byte, as long as one byte alone is possible."""
    tokenizer = TOKENIZERS["bpe"]()
    matcher = constrainer("bpe").matcher(RECORD)
    probe, only = matcher.copy(), b""
    singles = {
        tokenizer.inner_bytes(t): t for t in range(tokenizer.vocabulary_size) if len(tokenizer.inner_bytes(t)) == 1
    }
    while (
        len(found := [byte for byte, token in singles.items() if probe.validate([token])]) == 1 and not probe.may_stop
    ):
        only += found[0]
        probe.accept(singles[found[0]])
    assert only == b'{"name": "'
    assert spelled(tokenizer, matcher.forced()) == b'{"name":'  # a space and a quote are a token with others too
    assert matcher.forced() == tokenizer.encode_inner('{"name":')


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_what_is_rolled_back_was_never_accepted(kind, name):
    tokenizer, rng = TOKENIZERS[kind](), random.Random(3)
    for _ in range(20):
        ids = walk(kind, CONSTRAINTS[name], rng, num_free=10)
        matcher, at = constrainer(kind).matcher(CONSTRAINTS[name]), 0
        for _ in range(10):
            further = rng.randint(at, len(ids))
            for token in ids[at:further]:
                allowed(matcher, tokenizer)
                matcher.accept(token)
            back = rng.randint(0, further)
            matcher.rollback(further - back)
            at = back
            fresh = after(kind, CONSTRAINTS[name], ids[:at])
            assert allowed(matcher, tokenizer) == allowed(fresh, tokenizer)
            assert (matcher.may_stop, matcher.is_finished) == (fresh.may_stop, fresh.is_finished)
            assert matcher.forced() == fresh.forced()
            assert matcher.validate(ids[at:]) == len(ids) - at


def test_more_than_was_accepted_is_not_rolled_back():
    matcher = after("bpe", Choice(("aa",)), TOKENIZERS["bpe"]().encode_inner("a"))
    with pytest.raises(OptionError, match="rollback of 2 tokens, 1 were accepted"):
        matcher.rollback(2)
    matcher.rollback(1)
    with pytest.raises(OptionError, match="-1"):
        matcher.rollback(-1)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_copy_goes_its_own_way(kind):
    tokenizer, rng = TOKENIZERS[kind](), random.Random(4)
    for _ in range(20):
        ids = walk(kind, RECORD, rng)
        half = len(ids) // 2
        matcher = after(kind, RECORD, ids[:half])
        before, twin = allowed(matcher, tokenizer), matcher.copy()
        for token in ids[half:]:
            twin.accept(token)
        assert twin.is_finished and allowed(matcher, tokenizer) == before
        twin.rollback(len(ids))
        assert allowed(twin, tokenizer) == allowed(constrainer(kind).matcher(RECORD), tokenizer)


def test_a_stop_token_is_allowed_where_the_text_may_end_and_alone_behind_it():
    tokenizer = TOKENIZERS["bpe"]()
    a, b = tokenizer.encode_inner("a")[0], tokenizer.encode_inner("b")[0]
    stops = sorted(tokenizer.stop_ids)
    matcher = constrainer("bpe").matcher(Regex("ab?"))
    with pytest.raises(OptionError, match=f"token {stops[0]} is not allowed"):
        matcher.accept(stops[0])
    assert matcher.validate([a, stops[1], stops[0], a]) == 3
    matcher.accept(a)
    assert matcher.may_stop and not matcher.is_finished and set(stops) < set(allowed(matcher, tokenizer))
    matcher.accept(stops[1])
    assert matcher.may_stop and matcher.is_finished and allowed(matcher, tokenizer) == stops
    with pytest.raises(OptionError, match=f"token {b} is not allowed"):
        matcher.accept(b)
    assert matcher.validate([stops[0], b]) == 1
    matcher.rollback(1)
    matcher.accept(b)
    assert matcher.is_finished and allowed(matcher, tokenizer) == stops and matcher.forced() == []
    assert matcher.validate([b]) == 0 and matcher.validate(stops) == 2


@pytest.mark.parametrize("token", [-1, 10**6])
def test_a_token_that_is_not_allowed_changes_nothing(token):
    tokenizer = TOKENIZERS["bpe"]()
    matcher = constrainer("bpe").matcher(RECORD)
    before = allowed(matcher, tokenizer)
    for wrong in (token, tokenizer.encode_inner("z")[0], tokenizer.encode("<|other|>", special=True)[0]):
        with pytest.raises(OptionError, match=f"token {wrong} is not allowed here"):
            matcher.accept(wrong)
    assert allowed(matcher, tokenizer) == before


def test_as_many_drafted_tokens_count_as_could_be_accepted():
    rng = random.Random(5)
    for _ in range(30):
        ids = walk("bpe", RECORD, rng)
        at, wrong = rng.randrange(len(ids)), rng.randrange(TOKENIZERS["bpe"]().vocabulary_size)
        draft = [*ids[:at], wrong, *ids[at + 1 :]]
        matcher, count = constrainer("bpe").matcher(RECORD), 0
        valid = matcher.validate(draft)
        try:
            for token in draft:
                matcher.accept(token)
                count += 1
        except OptionError:
            pass
        assert valid == count >= at


def test_a_constraint_that_takes_too_much_work_says_so():
    matcher, rng = constrainer("bpe").matcher(Regex("([a-z ]{0,100}[ab]{0,100}){100}")), random.Random(0)
    tokens = TOKENIZERS["bpe"]().encode_inner("a b")
    with pytest.raises(GrammarError, match=r"too many expressions.*more simply"):
        while True:
            allowed(matcher, TOKENIZERS["bpe"]())
            matcher.accept(rng.choice(tokens))


def test_a_grammar_that_leads_nowhere_says_so_where_it_does():
    tokenizer = TOKENIZERS["bpe"]()
    matcher = constrainer("bpe").matcher(Grammar('root ::= "a" x | "hello"\nx ::= x "b"'))
    matcher.accept(tokenizer.encode_inner("a")[0])
    with pytest.raises(GrammarError, match="no text of this form goes on here"):
        allowed(matcher, tokenizer)
