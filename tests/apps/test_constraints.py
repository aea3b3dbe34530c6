"""edgellm run holds an answer to the form that an option names."""

import json
import re
from argparse import ArgumentParser
from pathlib import Path

import pytest

from edgellm.apps.constraints import add_constraint_options, constraint
from edgellm.engine.constrain import Choice, Constraint, Grammar, JsonObject, JsonSchema, Regex
from tests.apps.conftest import Run

SCHEMA = (
    '{"type": "object", "properties": {"age": {"enum": [1, 22]}}, "required": ["age"], "additionalProperties": false}'
)


def parsed(*argv: str) -> Constraint | None:
    parser = ArgumentParser()
    add_constraint_options(parser)
    return constraint(parser.parse_args(argv))


def test_options_are_the_constraints_of_the_api(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(SCHEMA, "utf-8")
    assert parsed() is None
    assert parsed("--json-schema", str(file)) == parsed("--json-schema", SCHEMA) == JsonSchema(SCHEMA)
    assert parsed("--json-object") == JsonObject()
    assert parsed("--regex", "a,b+") == Regex("a,b+")
    assert parsed("--choices", "yes,no") == Choice(("yes", "no"))
    for suffix in ("gbnf", "lark"):
        file = tmp_path / f"grammar.{suffix}"
        file.write_text('root ::= "a"', "utf-8")
        assert parsed("--grammar", str(file)) == Grammar('root ::= "a"', suffix)  # type: ignore[arg-type]


def test_answers_have_the_form(run: Run, tiny: str, tmp_path: Path) -> None:
    grammar = tmp_path / "count.gbnf"
    grammar.write_text('root ::= [xy] ("2" | "two")', "utf-8")
    ask = ("run", tiny, "Hi")
    assert re.fullmatch("[xyz]{3}\n", run(*ask, "--regex", "[xyz]{3}").out)
    assert run(*ask, "--choices", "yes,no").out in ("yes\n", "no\n")
    assert run(*ask, "--grammar", grammar).out in ("x2\n", "y2\n", "xtwo\n", "ytwo\n")


def test_a_form_that_begins_without_a_choice(run: Run, tiny: str) -> None:
    found = run("run", tiny, "Hi", "--json-schema", SCHEMA)
    assert json.loads(found.out)["age"] in (1, 22)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--regex", "a", "--json-object"], "not allowed with"),
        (["--json-schema", "none.json"], "none.json cannot be read"),
        (["--json-schema", "{not json"], "schema"),
        (["--grammar", "none.gbnf"], "none.gbnf cannot be read"),
        (["--grammar", "grammar.txt"], "does not end in .gbnf or .lark"),
        (["--choices", ","], "choice ()"),
    ],
)
def test_what_makes_no_sense_is_refused(run: Run, tiny: str, options: list[str], said: str) -> None:
    found = run("run", tiny, "Hi", *options)
    assert (found.code, found.out) == (2, "") and said in found.err
