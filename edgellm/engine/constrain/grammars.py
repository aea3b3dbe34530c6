"""Constraints as llguidance takes them, and what is wrong with one as a person reads it."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from edgellm.engine.constrain.constraints import Choice, Constraint, Grammar, JsonObject, JsonSchema, Regex
from edgellm.engine.constrain.gbnf import gbnf_to_lark, regex_of
from edgellm.errors import GrammarError

# As json.dumps does it: where white space is free, small models do not end it, and little text is ever forced.
STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

_REMEDIES = {
    JsonSchema: "say it another way, or leave it out and check the answer for it",
    Regex: "the syntax is that of Rust's regex crate, without look-around and back-references",
    Grammar: "the syntax is Lark as llguidance reads it, or GBNF",
}
# Where schemas lie in a schema: in a mapping, in a list, alone
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_ALONE = ("items", "additionalProperties")

_GBNF = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)
_QUOTED = re.compile(r"""//[^\n]*|"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|\#[^\n]*""")
_REFUSED = re.compile(r"<|\b(?:stop|max_tokens|temperature)\s*=")


def grammar_of(constraint: Constraint) -> dict[str, Any]:
    """A grammar of llguidance's: {"json_schema": ...} or {"lark_grammar": ...}. Errors: GrammarError."""
    match constraint:
        case JsonSchema(schema):
            parsed = _parsed(schema)
            own = parsed.get("x-guidance")  # llguidance's options, such as {"whitespace_flexible": true}
            return {"json_schema": parsed | {"x-guidance": STYLE | (own if isinstance(own, dict) else {})}}
        case JsonObject():
            return {"json_schema": {"type": "object", "x-guidance": STYLE}}
        case Regex(pattern):
            return {"lark_grammar": f"start: /{_for_lark(pattern)}/"}
        case Choice(texts):
            choices = ("".join(map(regex_of, text)) for text in texts)
            return {"lark_grammar": f"start: /(?:{'|'.join(choices)})/"}
        case Grammar(text, syntax):
            if syntax == "gbnf" or (syntax is None and _GBNF.search(text)):
                return {"lark_grammar": gbnf_to_lark(text)}
            _check_lark(text)
            return {"lark_grammar": text}


def explained(constraint: Constraint, problem: str, problem_of: Callable[[dict[str, Any]], str]) -> GrammarError:
    """The error for what llguidance says of a constraint; `problem_of` asks it about another grammar."""
    match constraint:
        case JsonSchema():
            what = f"schema, at {_place(grammar_of(constraint)['json_schema'], problem, problem_of)}"
        case Regex(pattern):
            what = f"regex {pattern!r}"
            problem = problem.partition("(in regex): ")[2].partition("\n   1 | ")[0] or problem
        case _:
            what = type(constraint).__name__.lower()
    headline, _, excerpt = problem.partition("\n")
    if "error: " in excerpt:  # of a regular expression, below the place
        excerpt, _, headline = excerpt.rpartition("error: ")
    remedy = _REMEDIES.get(type(constraint), "make it smaller")
    return GrammarError(f"{what}: {headline}; {remedy}\n{excerpt}".rstrip())


def _parsed(schema: Mapping[str, object] | str) -> dict[str, Any]:
    try:
        text = schema if isinstance(schema, str) else json.dumps(dict(schema), allow_nan=False)
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise GrammarError(f"schema, {place}: {error.msg}; give the schema as JSON") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise GrammarError(f"schema: {error}; give what json.dumps can write") from error
    if not isinstance(parsed, dict):
        raise GrammarError(f"schema {text[:40]} is not an object; {{}} stands for any JSON value")
    return parsed


def _place(schema: dict[str, Any], problem: str, problem_of: Callable[[dict[str, Any]], str]) -> str:
    """Where a schema has its problem, as a JSON pointer: the innermost schema that has the same one alone."""
    shared = {name: schema[name] for name in ("$defs", "definitions", "x-guidance") if name in schema}
    place = "#"
    inside = _inner(schema)
    while (found := next(inside, None)) is not None:
        step, inner = found
        if problem_of({"json_schema": shared | inner}) == problem:
            place = place + step
            inside = _inner(inner)
    return place


def _inner(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schemas directly in a schema, each with the step that leads to it."""
    inner: list[tuple[str, Any]] = [(f"/{name}", schema[name]) for name in _ALONE if name in schema]
    for name in _MAPS:
        if isinstance(schema.get(name), dict):
            inner += [(f"/{name}/{_escaped(key)}", value) for key, value in schema[name].items()]
    for name in _LISTS:
        if isinstance(schema.get(name), list):
            inner += [(f"/{name}/{at}", value) for at, value in enumerate(schema[name])]
    return ((step, value) for step, value in inner if isinstance(value, dict))


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _for_lark(pattern: str) -> str:
    """A regular expression as it stands between slashes."""
    marks = {"/": r"\/", "\n": r"\n"}
    return re.sub(r"\\.|[/\n]", lambda found: marks.get(found[0], found[0]), pattern, flags=re.DOTALL)


def _check_lark(text: str) -> None:
    """Nothing but text, and nothing that would have to be taken back. Errors: GrammarError."""
    bare = _QUOTED.sub(lambda quoted: re.sub(r"[^\n]", " ", quoted[0]), text)
    if found := _REFUSED.search(bare):
        line = text.count("\n", 0, found.start()) + 1
        column = found.start() - text.rfind("\n", 0, found.start())
        problem = "special tokens cannot be part of an answer" if found[0] == "<" else f"{found[0]!r} is not supported"
        raise GrammarError(f"grammar, line {line}, column {column}: {problem}; leave it out")
