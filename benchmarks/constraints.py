"""What constraints cost with a model's vocabulary: to compile, a mask, a token, memory; and what jumping ahead saves.

Run:  python benchmarks/constraints.py MODEL.gguf

Each case is a text of its form, taken token by token: the mask before the token, then the token itself.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from edgellm.converters.gguf_reader import open_gguf
from edgellm.engine.constrain import Choice, Constrainer, Constraint, Grammar, JsonObject, JsonSchema, Matcher, Regex
from edgellm.tokenizer import Vocabulary, open_tokenizer

TEXT = {"type": "string"}
REPEATS = 3
PERSON = {
    "type": "object",
    "properties": {
        "name": TEXT,
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "email": {"type": "string", "pattern": r"^[a-z.]+@[a-z]+\.(com|org)$"},
    },
    "required": ["name", "age", "email"],
    "additionalProperties": False,
}
ITEM = {
    "type": "object",
    "properties": {
        "sku": {"type": "string", "minLength": 1, "maxLength": 12},
        "count": {"type": "integer", "minimum": 1},
        "price": {"type": "number", "exclusiveMinimum": 0},
    },
    "required": ["sku", "count", "price"],
    "additionalProperties": False,
}
ORDER = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
        "status": {"enum": ["new", "paid", "sent", None]},
        "items": {"type": "array", "minItems": 1, "maxItems": 3, "items": ITEM},
    },
    "required": ["id", "status", "items"],
    "additionalProperties": False,
}
NODE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
    "required": ["value", "children"],
    "additionalProperties": False,
}
FIELDS = {f"field_{at}": [TEXT, {"type": "integer"}, {"enum": [f"option {n}" for n in range(20)]}][at % 3]
          for at in range(60)}  # fmt: skip
WIDE = {"type": "object", "properties": FIELDS, "required": list(FIELDS), "additionalProperties": False}
GBNF = r"""
root   ::= object
value  ::= object | list | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
list   ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= "-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"""
LINES = r'root ::= ("- " [^\n]+ "\n")+'
AMBIGUOUS = "root ::= x\nx ::= x x x x | [a-z ] |"
CALL = 'start: NAME "(" (value (", " value)*)? ")"\nvalue: NAME | %json {"type": "number"}\nNAME: /[a-z_]+/'
PROSE = {"title": "A walk in the hills", "parts": [1, -2.5e3, True, {"text": 'we met nobody, and it was "fine"'}]}
PERSON_TEXT = json.dumps({"name": "Ada Lovelace", "age": 36, "email": "ada.l@example.org"})
ORDER_ITEMS = [{"sku": "widget", "count": 2, "price": 9.75}, {"sku": "x", "count": 10, "price": 1}]
TREE = {
    "value": 1,
    "children": [{"value": -2, "children": []}, {"value": 3, "children": [{"value": 4, "children": []}]}],
}
WIDE_TEXT = json.dumps({name: ["some text", 12, "option 7"][at % 3] for at, name in enumerate(FIELDS)})
CITIES = tuple(f"{place} {number}" for place in ("London", "Zürich", "東京", "New York") for number in range(250))
CASES: list[tuple[str, Constraint, str]] = [
    ("person", JsonSchema(PERSON), PERSON_TEXT),
    ("order", JsonSchema(ORDER), json.dumps({"id": "ABC-1234", "status": None, "items": ORDER_ITEMS})),
    ("tree, $ref", JsonSchema({"$ref": "#/$defs/node", "$defs": {"node": NODE}}), json.dumps(TREE)),
    ("60 fields", JsonSchema(WIDE), WIDE_TEXT),
    ("any object", JsonObject(), json.dumps(PROSE)),
    ("regex", Regex(r"\+[0-9]{2} [0-9]{3} [0-9]{6,8}"), "+44 207 9460000"),
    ("1,000 choices", Choice(CITIES), "New York 123"),
    ("Lark", Grammar(CALL), "turn_to(north, 12.5, left)"),
    ("GBNF, lines", Grammar(LINES), "- We walked up the hill\n- and met nobody\n"),
    ("GBNF, JSON", Grammar(GBNF), json.dumps(PROSE)),
]


def timed(work: Callable[[], object]) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def taken(
    constrainer: Constrainer, constraint: Constraint, ids: list[int], mask: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Milliseconds of each token's [draft of 8 validated, mask, accept, copy]."""
    rows = []
    for _ in range(REPEATS):
        matcher = constrainer.matcher(constraint)
        for at, token in enumerate(ids):
            draft = partial(matcher.validate, ids[at : at + 8])
            fill = partial(matcher.fill_mask, mask)
            rows.append([timed(draft), timed(fill), timed(partial(matcher.accept, token)), timed(matcher.copy)])
        assert matcher.may_stop, constraint
    return np.array(rows)


def num_forced(matcher: Matcher, ids: list[int]) -> int:
    """Tokens of the text that need no step of the model."""
    at = count = 0
    while at < len(ids):
        forced = matcher.forced()
        count += len(forced)
        for token in forced or ids[at : at + 1]:
            matcher.accept(token)
            at += 1
    return count


def beside(start: Matcher, mask: NDArray[np.int32]) -> float:
    """Speed of another Python thread while this one fills masks, 1 where they do not touch it."""
    counted = [0]
    running = True

    def count() -> None:
        while running:
            counted[0] += 1

    def speed(work: Callable[[], object]) -> float:
        before = counted[0]
        milliseconds = timed(work)
        return (counted[0] - before) / milliseconds

    thread = threading.Thread(target=count)
    thread.start()
    alone = speed(partial(time.sleep, 0.3))
    meanwhile = speed(lambda: [start.copy().fill_mask(mask) for _ in range(10)])
    running = False
    thread.join()
    return meanwhile / alone


def report(path: str) -> Iterator[str]:
    """Line by line, as it is measured."""
    tokenizer = open_tokenizer(Vocabulary.from_gguf(open_gguf(Path(path)).metadata))
    constrainer = Constrainer(tokenizer)
    process = psutil.Process()
    mask = np.zeros(-(-tokenizer.vocabulary_size // 32), np.int32)
    before = process.memory_info().rss
    first = timed(partial(constrainer.matcher, Regex("a")))
    grown = process.memory_info().rss - before
    yield f"{tokenizer.vocabulary_size} tokens; the first matcher: {first:.0f} ms, {grown / 1e6:.0f} MB"
    yield f"{'':14}  compile   mask: median    p99   worst    draft   accept     copy   forced"
    masks = []
    for name, constraint, text in CASES:
        compiling = timed(partial(constrainer.matcher, constraint))
        ids = tokenizer.encode_inner(text)
        draft, fill, accept, copy = taken(constrainer, constraint, ids, mask).T
        masks.append(fill)
        median, p99, worst = np.percentile(fill, [50, 99, 100])
        share = num_forced(constrainer.matcher(constraint), ids) / len(ids)
        draft, accept, copy = (np.median(times) * 1e3 for times in (draft, accept, copy))
        yield (
            f"{name:14} {compiling:5.1f} ms {median:12.3f} {p99:8.3f} {worst:5.3f} ms"
            f" {draft:5.0f} us {accept:5.1f} us {copy:5.0f} us   {share:5.0%}"
        )
    median, p99, worst = np.percentile(np.concatenate(masks), [50, 99, 100])
    grown = process.memory_info().rss - before
    yield f"all masks: median {median:.3f} ms, p99 {p99:.3f}, worst {worst:.3f}; {grown / 1e6:.0f} MB for all"
    slow = constrainer.matcher(Grammar(AMBIGUOUS))
    for token in tokenizer.encode_inner("so many ways to read it"):
        slow.accept(token)
    worst = timed(partial(slow.copy().fill_mask, mask))
    kept = beside(slow, mask)
    yield f"a very ambiguous grammar: {worst:.0f} ms a mask, and another Python thread keeps {kept:.0%} of its speed"


if __name__ == "__main__":
    for line in report(sys.argv[1]):
        sys.stdout.write(line + "\n")
