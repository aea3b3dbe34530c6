"""What can be asked of the form of an answer. The whole answer has it, from its first character to its last."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edgellm.errors import OptionError


@dataclass(frozen=True)
class JsonSchema:
    """A JSON value that a schema (draft 2020-12) describes, spelled as json.dumps spells it.

    Properties come in the schema's order. What a schema asks and cannot be held while writing is an error.
    """

    schema: Mapping[str, object] | str  # parsed, or its text

    def __post_init__(self) -> None:
        if not isinstance(self.schema, Mapping):
            _check_text("schema", self.schema)


@dataclass(frozen=True)
class JsonObject:
    """Any JSON object, spelled as json.dumps spells it."""


@dataclass(frozen=True)
class Regex:
    """A text that a regular expression (the syntax of Rust's regex crate) matches from end to end."""

    pattern: str

    def __post_init__(self) -> None:
        _check_text("pattern", self.pattern)


@dataclass(frozen=True)
class Choice:
    """Exactly one of these texts."""

    texts: Sequence[str]

    def __post_init__(self) -> None:
        if not isinstance(self.texts, list | tuple) or not self.texts:
            raise OptionError(f"choice {self.texts!r} must be a list of texts; one is written [text]")
        object.__setattr__(self, "texts", tuple(self.texts))
        for text in self.texts:
            _check_text("choice", text)


@dataclass(frozen=True)
class Grammar:
    """A text of a grammar, whose first rule is `start` in Lark and `root` in GBNF.

    "lark": as llguidance reads it; a terminal, which has a name in capital letters, takes the longest match.
    "gbnf": llama.cpp's notation; no part of it takes a character that another part needs.
    """

    text: str
    syntax: Literal["lark", "gbnf"] | None = None  # None: a text with ::= is GBNF

    def __post_init__(self) -> None:
        _check_text("grammar", self.text)
        if self.syntax not in ("lark", "gbnf", None):
            raise OptionError(f"grammar syntax {self.syntax!r} is unknown; known: 'lark', 'gbnf', or None to find out")


Constraint = JsonSchema | JsonObject | Regex | Choice | Grammar


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise OptionError(f"{name} {value!r} is not a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise OptionError(f"{name}: half a surrogate pair ({error}); decode it as UTF-8 first") from error
