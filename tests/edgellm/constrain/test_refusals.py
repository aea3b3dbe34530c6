"""What cannot be held to is refused at once, with its place and a way out."""

import json
import random
import sys
import threading

import pytest

pytest.importorskip("llguidance", reason="llguidance is not installed: pip install 'edgellm[constrain]'")

from edgellm.engine.constrain import Choice, Constrainer, Grammar, JsonObject, JsonSchema, Regex
from edgellm.engine.constrain import constrainer as constrainer_module
from edgellm.errors import GrammarError, MissingExtraError, OptionError, TokenizerError
from edgellm.tokenizer import open_tokenizer
from tests.edgellm.constrain.walking import TOKENIZERS, allowed, constrainer
from tests.edgellm.tiny_vocabularies import bpe_vocabulary


def _nested(schema: object) -> dict:
    inner = {"type": "array", "items": schema, "minItems": 1}
    return {"properties": {"a/b": inner}, "required": ["a/b"], "$defs": {"text": {"type": "string"}}}


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        (JsonSchema('{"type":\n }'), "line 2, column 2: Expecting value.*as JSON"),
        (JsonSchema("[1]"), r"schema \[1\] is not an object"),
        (JsonSchema("true"), "{} stands for any JSON value"),
        (JsonSchema({"const": float("nan")}), "json.dumps can write"),
        (JsonSchema({"const": {1, 2}}), "json.dumps can write"),
        (JsonSchema({"type": "strin"}), "at #: .*strin.*say it another way"),
        (JsonSchema(_nested({"uniqueItems": True})), "at #/properties/a~1b/items: .*uniqueItems.*check the answer"),
        (JsonSchema(_nested({"not": {"$ref": "#/$defs/text"}})), "at #/properties/a~1b/items: .*not"),
        (
            JsonSchema(_nested({"anyOf": [{"type": "null"}, {"type": "string", "pattern": "a("}]})),
            "items/anyOf/1: unclosed group.*\n *a\\(\n *\\^",
        ),
        (JsonSchema({"properties": {"n": {"enum": []}}, "required": ["n"], "type": "object"}), "'n' is unsatisfiable"),
        (JsonSchema(_nested({"$ref": "#/$defs/nothing"})), "at #/properties/a~1b/items: .*/\\$defs/nothing"),
        (JsonSchema(_nested({"type": "string", "format": "colour"})), "items: .*colour"),
        (JsonSchema({"enum": []}), "at #: "),
        (JsonSchema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}), "no text of this form"),
        (Regex("a(b"), r"regex 'a\(b': unclosed group; the syntax is that of Rust.*\n    a\(b\n     \^"),
        (Regex("a/(?=b)"), "look-around"),
        (Regex(r"(a)\1"), "backreferences are not supported"),
        (Regex(r"\bx"), "WordUnicode"),
        (Grammar('start: "a"\n  | foo'), r"at 1\(8\): unknown name: \"foo\"; the syntax(.|\n)*\| foo"),
        (Grammar("start: /a(/"), "unclosed group"),
        (Grammar('first: "a"'), "no start rule"),
        (Grammar('start: start "a"'), "no text of this form"),
        (Grammar('start: "a<b" /<</ // <c>\n  | <|other|>'), "line 2, column 5: special tokens cannot"),
        (Grammar("start: <[5]>"), "line 1, column 8: special tokens"),
        (Grammar('start: a "b"\na[stop="b"]: /.*/'), "line 2, column 3: 'stop=' is not supported; leave it out"),
        (Grammar("start: /a/", "gbnf"), "GBNF grammar, line 1, column 6"),
        (Grammar('root ::= "a" | b'), "GBNF grammar, line 1, column 16: there is no rule 'b'"),
        (Choice(("a" * 300_000,)), "bytes; 262144 is most"),
    ],
)
def test_a_bad_constraint_is_refused_with_its_place(constraint, said):
    with pytest.raises(GrammarError, match=said):
        constrainer("bpe").matcher(constraint)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: JsonSchema(7), "schema 7 is not a text"),
        (lambda: Regex(None), "pattern None"),
        (lambda: Regex("\ud800"), "surrogate"),
        (lambda: Choice(()), r"choice \(\).*\[text\]"),
        (lambda: Choice("yes"), "choice 'yes'"),
        (lambda: Choice(("yes", 7)), "choice 7"),
        (lambda: Grammar("x", "ebnf"), "'ebnf' is unknown; known: 'lark', 'gbnf'"),
    ],
)
def test_what_is_no_constraint_is_refused_when_made(make, said):
    with pytest.raises(OptionError, match=said):
        make()


def test_half_a_surrogate_pair_in_a_schema_is_refused():
    with pytest.raises(GrammarError, match="schema"):
        constrainer("bpe").matcher(JsonSchema({"const": "\ud800"}))


def test_without_the_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgellm\[constrain\]'"):
        Constrainer(TOKENIZERS["bpe"]()).matcher(JsonObject())


@pytest.mark.parametrize("kind", ["schema", "rules"])
def test_a_long_chain_of_references_does_not_end_the_process(kind):
    """On the stack of an ordinary thread a thousand references in a schema do."""
    if kind == "schema":
        chain = {f"a{at}": {"type": "array", "items": {"$ref": f"#/$defs/a{at + 1}"}} for at in range(4000)}
        constraint = JsonSchema({"$ref": "#/$defs/a0", "$defs": chain | {"a4000": {"type": "null"}}})
    else:
        chain = [f'a{at}: a{at + 1} "x"' for at in range(12_000)]
        constraint = Grammar("\n".join(["start: a0", *chain, 'a12000: "y"']))
    matchers = []
    thread = threading.Thread(target=lambda: matchers.append(constrainer("bpe").matcher(constraint)))
    thread.start()
    thread.join()
    assert matchers[0].validate(TOKENIZERS["bpe"]().encode_inner("[[[" if kind == "schema" else "yxx")) == 3


def test_a_vocabulary_that_cannot_be_held_to_anything_is_refused(monkeypatch):
    with pytest.raises(TokenizerError, match="no token that ends a text"):
        tokens = [token for token in bpe_vocabulary().tokens if token != "<|im_end|>"]
        vocabulary = bpe_vocabulary(tokens=tokens, token_type=None, eos_token_id=None)
        Constrainer(open_tokenizer(vocabulary)).matcher(JsonObject())
    long = [*bpe_vocabulary().tokens, "x" * 5000]
    types = [*bpe_vocabulary().types, 1]
    tokenizer = open_tokenizer(bpe_vocabulary(tokens=long, token_type=types))
    assert len(long) - 1 not in allowed(Constrainer(tokenizer).matcher(Regex("x*")), tokenizer)
    monkeypatch.setattr("edgellm.engine.constrain.tokens.MAX_BYTES", 200)
    with pytest.raises(TokenizerError, match="bytes, for constraints 200 at most"):
        Constrainer(tokenizer).matcher(JsonObject())


def test_what_was_used_lately_is_not_compiled_again(monkeypatch):
    compiled, compile_ = [], Constrainer._compile
    monkeypatch.setattr(Constrainer, "_compile", lambda self, text: compiled.append(text) or compile_(self, text))
    maker, schema = Constrainer(TOKENIZERS["bpe"]()), {"type": "integer"}
    first, again = maker.matcher(JsonSchema(schema)), maker.matcher(JsonSchema(json.dumps(schema)))
    again.accept(TOKENIZERS["bpe"]().encode_inner("1")[0])
    assert again.may_stop and not first.may_stop and len(compiled) == 1
    for at in range(constrainer_module.MAX_COMPILED - 1):
        maker.matcher(Choice((str(at),)))
    maker.matcher(JsonSchema(schema))
    assert len(compiled) == constrainer_module.MAX_COMPILED
    maker.matcher(Choice(("one more",)))
    maker.matcher(Choice(("0",)))
    assert len(compiled) == constrainer_module.MAX_COMPILED + 2


def test_what_went_wrong_in_one_answer_does_not_in_the_next():
    tokenizer, hard = TOKENIZERS["bpe"](), Regex("([a-z ]{0,100}[ab]{0,100}){100}")
    matcher, rng = constrainer("bpe").matcher(hard), random.Random(0)
    with pytest.raises(GrammarError):
        while True:
            allowed(matcher, tokenizer)
            matcher.accept(rng.choice(tokenizer.encode_inner("a b")))
    matcher = constrainer("bpe").matcher(hard)
    assert matcher.validate(tokenizer.encode_inner("hello b")) == len(tokenizer.encode_inner("hello b"))
