"""GBNF, the grammar notation of llama.cpp (grammars/README.md there), translated to Lark as llguidance reads it.

    root  ::= "yes" | "no, " reason      rules; the text is what `root` describes
    reason ::= [a-z ]+ [.!?]{1,3} # why  texts, sets, groups ( ), repeats ? * + {m} {m,} {m,n}, any character .

Lark's terminals take the longest match and never give back, and GBNF knows no such thing: in llama.cpp's own
arithmetic example white space would swallow the end of the line for which the grammar waits. So a grammar without
recursion becomes a single terminal, which is one regular expression, and in any other each character is a terminal.
The latter costs 1.5 ms instead of 0.01 ms a mask where nearly every token is allowed (49,152 tokens).
"""

import re
from graphlib import CycleError, TopologicalSorter

from edgellm.errors import GrammarError

MAX_NESTING = 20  # groups; llguidance takes 26

_TOKEN = re.compile(
    r"""(?P<space>(?:\s|\#[^\n]*)+) | (?P<name>[A-Za-z0-9_-]+) | (?P<define>::=)
    | "(?P<text>(?:\\.|[^"\\])*)" | \[(?P<set>\^?(?:\\.|[^\]\\])+)\]
    | (?P<repeat>[?*+]|\{\s*\d{1,6}\s*(?:,\s*(?:\d{1,6}\s*)?)?\}) | (?P<mark>[()|.])""",
    re.VERBOSE | re.DOTALL,
)
_CHARACTER = re.compile(r"\\(?:x(..)|u(.{4})|U(.{8})|([tnr])|(\W))|([^\\])", re.DOTALL)
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r"}
_REFERENCE = re.compile("<(.+?)>")  # to a rule, until the rules have their names


def gbnf_to_lark(text: str) -> str:
    """Errors: GrammarError with line and column."""
    rules = _Reader(text).rules
    used = {}
    waiting = ["root"]
    while waiting:
        name = waiting.pop()
        if name not in used:
            used[name] = _REFERENCE.findall(rules[name])
            waiting += used[name]
    try:
        TopologicalSorter(used).prepare()
        prefix = "R"
    except CycleError:
        prefix = "r"
    names = {name: f"{prefix}{at}" for at, name in enumerate(used)}
    lines = [f"{new}: " + _REFERENCE.sub(lambda found: names[found[1]], rules[old]) for old, new in names.items()]
    return "\n".join([f"start: {names['root']}", *lines, ""])


class _Reader:
    """Reads a grammar; `rules` has the bodies by name, in Lark but for references, which are <name>."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._scan()
        self._at = self._depth = 0
        self.rules: dict[str, str] = {}
        self._references: dict[str, int] = {}  # name -> its first place
        while self._kind() != "end":
            name, place = self._take("name", "a rule's name")
            self._take("define", "::=")
            if name in self.rules:
                raise self._error(f"there is a second rule {name!r}", place)
            self.rules[name] = self._alternatives()
        for name, place in self._references.items():
            if name not in self.rules:
                raise self._error(f"there is no rule {name!r}", place)
        if "root" not in self.rules:
            raise self._error("there is no rule 'root', which is the whole text", len(text))

    def _scan(self) -> list[tuple[str, str, int]]:
        """Kind, text and place of each token; a mark is its own kind."""
        tokens = []
        at = 0
        while at < len(self._text):
            found = _TOKEN.match(self._text, at)
            if found is None:
                raise self._error(f"{self._text[at : at + 10]!r} is not understood", at)
            kind = found.lastgroup or ""
            if kind != "space":
                tokens.append((found[kind] if kind == "mark" else kind, found[kind], found.start(kind)))
            at = found.end()
        return [*tokens, ("end", "", len(self._text))]

    def _alternatives(self) -> str:
        found = [self._sequence()]
        while self._next("|"):
            found.append(self._sequence())
        return " | ".join(found)

    def _sequence(self) -> str:
        items = []
        while (item := self._item()) is not None:
            if self._kind() == "repeat":
                repeat = self._repeat(*self._take("repeat", "a repeat"))
                item = f"({item})" if " " in item else item
                item += repeat if item != '""' else ""
            items.append(item)
        return " ".join(items) or '""'

    def _item(self) -> str | None:
        """A text, set, reference or group; None where the alternative ends."""
        kind, text, place = self._tokens[self._at]
        if kind in ("end", "|", ")") or self._tokens[self._at + 1][0] == "define":
            return None
        self._at += 1
        match kind:
            case "name":
                self._references.setdefault(text, place)
                return f"<{text}>"
            case "text":
                return " ".join(f"/{regex_of(character)}/" for character, _, _ in self._characters(text, place)) or '""'
            case "set":
                return self._set(text, place)
            case ".":
                return "/(?s:.)/"
            case "(":
                return self._group(place)
        raise self._error(f"{text!r} has nothing before it", place)

    def _group(self, place: int) -> str:
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise self._error(f"groups are nested deeper than {MAX_NESTING}; make rules of the inner ones", place)
        inner = self._alternatives()
        if not self._next(")"):
            raise self._error("the group that begins here has no ')'", place)
        self._depth -= 1
        return f"({inner})"

    def _set(self, text: str, place: int) -> str:
        negated = text.startswith("^")
        found = self._characters(text[negated:], place + negated)
        parts = []
        at = 0
        while at < len(found):
            first, _, here = found[at]
            last = first
            if at + 2 < len(found) and found[at + 1][:2] == ("-", False):
                last = found[at + 2][0]
                at += 2
            if last < first:
                raise self._error(f"the range {first!r} to {last!r} is the wrong way round", here)
            parts.append(regex_of(first) if first == last else f"{regex_of(first)}-{regex_of(last)}")
            at += 1
        if not parts:
            raise self._error("the set is empty", place)
        return f"/[{'^' if negated else ''}{''.join(parts)}]/"

    def _characters(self, text: str, place: int) -> list[tuple[str, bool, int]]:
        """The characters that a text or set stands for, whether each was escaped, and its place."""
        characters = []
        at = 0
        while at < len(text):
            found = _CHARACTER.match(text, at)
            here = place + at
            if found is None:
                raise self._error(f"the escape {text[at : at + 2]!r} is unknown", here)
            digits = found[1] or found[2] or found[3]
            plain = found[5] or found[6]
            character = self._code_point(digits, here) if digits else plain or _CONTROLS[found[4]]
            characters.append((character, found[6] is None, here))
            at = found.end()
        return characters

    def _code_point(self, digits: str, place: int) -> str:
        try:
            character = chr(int(digits, 16))
            character.encode()
        except (ValueError, OverflowError) as error:
            raise self._error(f"{digits!r} is not the number of a character in hexadecimal digits", place) from error
        return character

    def _repeat(self, text: str, place: int) -> str:
        repeat = "".join(text.split())
        low, _, high = repeat.strip("{}").partition(",")
        if (high and int(high) < int(low)) or repeat in ("{0}", "{0,0}"):
            raise self._error(f"the repeat {repeat} allows nothing", place)
        return repeat

    def _kind(self) -> str:
        return self._tokens[self._at][0]

    def _next(self, mark: str) -> bool:
        """Take the mark if it is next."""
        taken = self._kind() == mark
        self._at += taken
        return taken

    def _take(self, kind: str, what: str) -> tuple[str, int]:
        found, text, place = self._tokens[self._at]
        if found != kind:
            raise self._error(f"{what} is missing", place)
        self._at += 1
        return text, place

    def _error(self, problem: str, place: int) -> GrammarError:
        line = self._text.count("\n", 0, place) + 1
        column = place - self._text.rfind("\n", 0, place)
        return GrammarError(f"GBNF grammar, line {line}, column {column}: {problem}")


def regex_of(character: str) -> str:
    return character if character.isascii() and character.isalnum() else f"\\u{{{ord(character):x}}}"
