"""Whatever tokens are drawn, the text has the form that was asked for."""

import json
import random
import re

import pytest

pytest.importorskip("llguidance", reason="llguidance is not installed: pip install 'edgellm[constrain]'")

from edgellm.engine.constrain import Choice, Constrainer, Constraint, Grammar, JsonObject, JsonSchema, Regex
from edgellm.tokenizer import open_tokenizer
from tests.edgellm.constrain.walking import TOKENIZERS, allowed, constrainer, walk
from tests.edgellm.tiny_vocabularies import bpe_vocabulary

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 4},
        "age": {"type": "integer", "minimum": -3, "maximum": 117},
        "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$"},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
LISTS = {
    "type": "array",
    "items": {"type": "array", "items": {"enum": ["ü", 3, None, 'a"b', [1]]}, "minItems": 2, "maxItems": 3},
    "minItems": 1,
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"hello": {"type": "boolean"}, "yes": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["hello", "yes"],
            "additionalProperties": False,
        }
    },
}
EITHER = {
    "anyOf": [
        {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False},
        {"type": ["string", "null"], "maxLength": 5},
    ]
}
MAP = {
    "type": "object",
    "properties": {"日本": {"type": "boolean"}},
    "required": ["日本"],
    "additionalProperties": {"type": "integer"},
}
SCHEMAS = {"person": PERSON, "lists": LISTS, "tree": TREE, "either": EITHER, "map": MAP}
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "null": type(None)}


def conforms(value: object, schema: dict, root: dict) -> bool:
    """A validator of what the schemas above use."""
    if "$ref" in schema:
        return conforms(value, root["$defs"][schema["$ref"].split("/")[-1]], root)
    if "anyOf" in schema:
        return any(conforms(value, one, root) for one in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return value in schema.get("enum", [schema.get("const")])
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if type(value) not in [TYPES[name] for name in types]:
        return False
    if isinstance(value, str):
        fits = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 99)
        return fits and re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, dict):
        known, others = schema["properties"], schema["additionalProperties"]
        inner = [(one, known.get(name, others)) for name, one in value.items()]
        return set(schema["required"]) <= set(value) and all(how and conforms(one, how, root) for one, how in inner)
    if isinstance(value, list):
        fits = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 99)
        return fits and all(conforms(one, schema["items"], root) for one in value)
    return not isinstance(value, int) or schema.get("minimum", value) <= value <= schema.get("maximum", value)


def texts(kind: str, constraint: Constraint) -> list[str]:
    """200 texts; none holds anything of a control token."""
    tokenizer, rng = TOKENIZERS[kind](), random.Random(0)
    found = [tokenizer.decode(walk(kind, constraint, rng)) for _ in range(200)]
    assert all("\ufffd" not in text for text in found)
    return found


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_text_under_a_schema_conforms_to_it(kind, name):
    found = texts(kind, JsonSchema(SCHEMAS[name]))
    for text in found:
        value = json.loads(text)
        assert conforms(value, SCHEMAS[name], SCHEMAS[name]), text
    assert len(set(found)) > 5


def test_a_schema_may_be_a_text_and_gives_the_same():
    assert texts("bpe", JsonSchema(json.dumps(PERSON))) == texts("bpe", JsonSchema(PERSON))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_any_json_object_is_a_json_object(kind):
    values = [json.loads(text) for text in texts(kind, JsonObject())]
    assert all(type(value) is dict for value in values)
    assert {type(one) for value in values for one in value.values()} >= {str, int, dict}


def test_an_empty_schema_is_any_json_value():
    assert {type(json.loads(text)) for text in texts("bpe", JsonSchema({}))} >= {dict, list, str, int, bool}


def test_json_is_spelled_as_json_dumps_does_it():
    for text in texts("bpe", JsonSchema(LISTS)):
        assert text == json.dumps(json.loads(text), ensure_ascii=False)


def test_white_space_is_free_where_the_schema_asks_for_it():
    schema = {"type": "array", "items": {"type": "integer"}}
    ids = TOKENIZERS["bpe"]().encode_inner("[\n  1 ,2 ]")
    assert constrainer("bpe").matcher(JsonSchema(schema)).validate(ids) == 1
    free = constrainer("bpe").matcher(
        JsonSchema(schema | {"x-guidance": {"whitespace_flexible": True, "item_separator": ","}})
    )
    assert free.validate(ids) == len(ids)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_choice_gives_exactly_its_texts(kind):
    choices = ("yes", "yes, so", "no", "日本", 'a/b\n"c" \\ {2}', "ab", "aba", " x", "<tool> x")
    assert set(texts(kind, Choice(choices))) == set(choices)


def test_a_choice_may_be_the_empty_text():
    assert set(texts("bpe", Choice(("", "a")))) == {"", "a"}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(
    "pattern",
    [
        "[0-9]{3}-[0-9]{4}",
        "^(ab|aba)*c$",
        r"\{\"(name|he): \" [a-c]+/\\",
        "[é日]{1,3}|hello{2,}",
        r"[0-9]+(\.[0-9]+)?",
        "(?i)yes",
        "a\nb?",
        " ?x",
    ],
)
def test_a_regex_matches_the_whole_text(kind, pattern):
    found = texts(kind, Regex(pattern))
    assert all(re.fullmatch(pattern, text) for text in found)
    assert len(set(found)) > 1


def test_a_lark_grammar_gives_texts_of_it():
    grammar = Grammar(
        'start: "call " NAME "(" (arg (", " arg)*)? ")"\narg: NAME | %json {"type": "boolean"}\nNAME: /[a-e]{1,3}/'
    )
    found = texts("bpe", grammar)
    argument = "(?:[a-e]{1,3}|true|false)"
    assert all(re.fullmatch(rf"call [a-e]{{1,3}}\((?:{argument}(?:, {argument})*)?\)", text) for text in found)
    assert any("true" in text for text in found)


def test_control_tokens_that_end_no_text_are_never_drawn():
    tokenizer = TOKENIZERS["bpe"]()
    ids = {token for _ in range(200) for token in walk("bpe", Regex("(?s:.){5}"), random.Random(_))}
    other = tokenizer.encode("<|other|>", special=True)[0]
    assert other not in ids and len(ids) > 250


def test_a_stop_token_is_no_text_however_it_is_spelled():
    plain = bpe_vocabulary()
    a, b = plain.tokens.index("a"), plain.tokens.index("b")
    tokenizer = open_tokenizer(bpe_vocabulary(eos_token_id=a))
    matcher = Constrainer(tokenizer).matcher(Regex("[ab]"))
    assert allowed(matcher, tokenizer) == [b]
    matcher.accept(b)
    assert set(allowed(matcher, tokenizer)) == tokenizer.stop_ids >= {a}


def test_a_text_of_sentencepiece_begins_with_the_space_that_decoding_takes_away():
    tokenizer, rng = TOKENIZERS["spm"](), random.Random(0)
    firsts = {walk("spm", Choice(("yes", "{}")), rng)[0] for _ in range(50)}
    assert {tokenizer.inner_bytes(token)[:1] for token in firsts} == {b" "}
    matcher = constrainer("spm").matcher(Choice(("yes", " {}")), previous=tokenizer.encode_inner("a")[0])
    assert matcher.validate(tokenizer.encode_inner("yes")) == len(tokenizer.encode_inner("yes"))
    assert matcher.validate(tokenizer.encode_inner(" {}")) == len(tokenizer.encode_inner(" {}"))
    assert matcher.validate(tokenizer.encode_inner(" yes")) <= 1
