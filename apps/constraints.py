"""Options that hold an answer to a form."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Literal

from edgellm.apps.options import comma_separated
from edgellm.apps.terminal import read_text
from edgellm.engine.constrain import Choice, Constraint, Grammar, JsonObject, JsonSchema, Regex
from edgellm.errors import OptionError

SYNTAXES: dict[str, Literal["gbnf", "lark"]] = {".gbnf": "gbnf", ".lark": "lark"}


def add_constraint_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("form of the answer, one of these").add_mutually_exclusive_group()
    group.add_argument(
        "--json-schema", metavar="FILE", help="a JSON value of this schema: a file, or the schema itself, from its { on"
    )
    group.add_argument("--json-object", action="store_true", help="any JSON object")
    group.add_argument("--regex", metavar="PATTERN", help="a text that the regular expression matches as a whole")
    group.add_argument("--choices", type=comma_separated, metavar="A,B", help="one of these texts")
    group.add_argument(
        "--grammar", type=Path, metavar="FILE", help=f"a text of this grammar, a file in {' or '.join(SYNTAXES)}"
    )


def constraint(args: Namespace) -> Constraint | None:
    """Errors: OptionError, UsageError."""
    if args.json_schema is not None:
        given: str = args.json_schema
        return JsonSchema(given if given.lstrip().startswith("{") else read_text(Path(given)))
    if args.json_object:
        return JsonObject()
    if args.regex is not None:
        return Regex(args.regex)
    if args.choices is not None:
        return Choice(args.choices)
    if args.grammar is not None:
        syntax = SYNTAXES.get(args.grammar.suffix)
        if syntax is None:
            raise OptionError(f"--grammar {args.grammar} does not end in {' or '.join(SYNTAXES)}; rename it")
        return Grammar(read_text(args.grammar), syntax)
    return None
