"""From constraints to matchers, for one tokenizer."""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from functools import cached_property, partial
from typing import TYPE_CHECKING, TypeVar

from edgellm.engine.constrain.constraints import Constraint
from edgellm.engine.constrain.grammars import explained, grammar_of
from edgellm.engine.constrain.matcher import Matcher, problem
from edgellm.engine.constrain.tokens import token_trie
from edgellm.errors import GrammarError
from edgellm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_COMPILED = 16  # grammars kept; most have 1 MB, the worst that the next limit lets through 20 MB
MAX_LEXER_STATES = 50_000
MAX_GRAMMAR_BYTES = 1 << 18
# llguidance follows references by recursion, and a full stack ends the process: a reference in a schema takes 8 KB,
# and 10 bytes or more to write. The system commits only what is touched.
STACK_BYTES = 1 << 20
STACK_BYTES_PER_BYTE = 1 << 10

_STACK_SIZE = threading.Lock()  # one for the process
_T = TypeVar("_T")


class Constrainer:
    """Makes matchers; one a model, usable from several threads. The first takes 0.2 s for 49,152 tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()  # what was used last comes last
        self._lock = threading.Lock()

    def matcher(self, constraint: Constraint, previous: int | None = None) -> Matcher:
        """A matcher for the answer after the token `previous`, the last of the prompt.

        What was compiled lately is not compiled again. Errors: GrammarError, MissingExtraError, TokenizerError.
        """
        grammar = grammar_of(constraint)
        grammars = [grammar]
        if self._tokenizer.begins_with_space(previous):
            grammars = [{"lark_grammar": 'start: " " @text'}, grammar | {"name": "text"}]
        text = _written(grammars)
        parser = self._parser(text)
        if found := problem(parser):
            raise explained(constraint, found, lambda other: problem(self._compile(_written([other]))))
        forget = partial(self._compiled.pop, text, None)
        return Matcher(parser.deep_copy(), self._tokenizer.vocabulary_size, self._tokenizer.stop_ids, forget)

    def _parser(self, grammars: str) -> "LLMatcher":
        """One that has accepted nothing. Its copies share a lexer: what it has learnt, and that it is at its limits."""
        with self._lock:
            parser = self._compiled.pop(grammars, None)
        parser = parser or self._compile(grammars)
        with self._lock:
            self._compiled[grammars] = parser
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
        return parser

    @cached_property
    def _trie(self) -> "LLTokenizer":
        return token_trie(self._tokenizer)

    def _compile(self, grammars: str) -> "LLMatcher":
        trie = self._trie
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
        if len(grammars) > MAX_GRAMMAR_BYTES:
            raise GrammarError(
                f"the constraint has {len(grammars)} bytes; {MAX_GRAMMAR_BYTES} is most, make it shorter"
            )

        def work() -> LLMatcher:
            parser = LLMatcher(trie, grammars, log_level=0, limits=limits)
            parser.compute_bitmask()  # where no text has the form, only this finds out
            return parser

        return _on_stack(STACK_BYTES + len(grammars) * STACK_BYTES_PER_BYTE, work)


def _written(grammars: list[dict[str, object]]) -> str:
    return json.dumps({"grammars": grammars})


def _on_stack(size: int, work: Callable[[], _T]) -> _T:
    """Run in a thread with a stack of so many bytes."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    with _STACK_SIZE:
        before = threading.stack_size(size)
        try:
            threading.Thread(target=run, name="edgellm-constrain").start()
        finally:
            threading.stack_size(before)
    return future.result()
