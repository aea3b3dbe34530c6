"""One request on its way through the engine: what is asked, what was computed, what has come out of it."""

from collections import deque
from enum import Enum
from time import perf_counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgellm.backends.base import Rows, SamplerSlot
from edgellm.engine.constrain import Matcher
from edgellm.engine.context import Context
from edgellm.engine.detokenizer import Detokenizer, FinishReason
from edgellm.engine.logprobs import Logprobs, logprobs_of
from edgellm.engine.masks import Masks
from edgellm.engine.params import SamplingParams
from edgellm.engine.speculate import Controller
from edgellm.inspect.probe import Observation, Probe
from edgellm.memory.prefix import CacheReport
from edgellm.memory.sequence import Sequence


class Piece(NamedTuple):
    """What one token adds: its text, empty while a character or a stop text is incomplete."""

    text: str
    token_id: int
    logprobs: Logprobs | None = None  # where SamplingParams.logprobs asks for them


class Status(Enum):
    WAITING = "waiting"  # for its turn, or for memory
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Request:
    """What the engine knows of an answer. Its tokens are the prompt's and the answer's, of which `sequence` holds the
    keys and values of the first `sequence.length`.
    """

    def __init__(
        self, prompt: list[int], params: SamplingParams, sampler: SamplerSlot, detokenizer: Detokenizer, *,
        context: Context, controller: Controller, matcher: Matcher | None, masks: Masks | None, priority: int,
        max_unread: int, probe: Probe | None = None,
    ) -> None:  # fmt: skip
        self.params = params
        self.sampler = sampler
        self.priority = priority
        self.probe = probe
        # A function of the user's may depend on what it was called with before
        self.drafts = params.speculation != "off" and not params.logits_processors
        self.tokens = list(prompt)
        self.num_prompt_tokens = len(prompt)
        self.ids: list[int] = []  # generated, with the stop token
        self.logprobs: list[Logprobs | None] = []  # of these, where asked for and not forced
        self.prompt_logprobs: list[Logprobs] = []  # of the prompt's tokens after the first, as far as computed
        self.pieces: deque[Piece] = deque()  # not read yet
        self.observations: deque[Observation] = deque()  # for the probe's callback
        self.finish_reason: FinishReason | None = None
        self.error: BaseException | None = None  # that ended it
        self.is_cancelled = False  # by its reader; the engine ends it at the next opportunity
        self.sequence: Sequence | None = None  # None while it waits for memory or its turn
        self.report: CacheReport | None = None  # what the prefix cache knew of the prompt
        self.num_dropped = 0  # tokens that a full context shifted out
        self.num_drafted = self.num_accepted = 0
        self.submitted_at = perf_counter()
        self.queue_seconds: float | None = None  # until a step first computed it
        self.prefill_seconds = self.decode_seconds = 0.0
        self.controller = controller
        self.matcher = matcher
        self.masks = masks
        self.detokenizer = detokenizer
        self._context = context
        self._max_unread = max_unread
        self._num_scored = 0 if params.prompt_logprobs is None else len(prompt) - 1  # prompt tokens with logprobs
        self.reads_cache = self._num_scored == 0  # else the logits of all tokens are wanted, so all are computed
        # A step of such requests alone is only run: nothing is looked at or changed on the way
        self.is_plain = probe is None and masks is None and not params.logits_processors and self.reads_cache
        self._has_chosen = False  # a token, as opposed to those that a constraint forces
        controller.update(prompt)
        if matcher is not None:
            self._force(matcher)

    @property
    def status(self) -> Status:
        if self.error is not None:
            return Status.FAILED
        if self.finish_reason is not None:
            return Status.CANCELLED if self.finish_reason == "cancelled" else Status.FINISHED
        return Status.WAITING if self.sequence is None else Status.RUNNING

    @property
    def is_over(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def is_parked(self) -> bool:
        """Whether it computes no more until its reader has read."""
        return len(self.pieces) >= self._max_unread

    @property
    def num_left(self) -> int:
        """Tokens still to be computed before the next can be chosen."""
        return len(self.tokens) - (self.sequence.length if self.sequence else 0)

    @property
    def num_shared(self) -> int:
        return self.report.num_cached_tokens if self.report else 0

    @property
    def draft_room(self) -> int:
        """The most tokens of a draft that could all become part of the answer, with one more."""
        room = self._context.size - len(self.tokens)
        left = self.detokenizer.num_left
        return max(room if left is None else min(room, left - 1), 0)

    def begin(self, sequence: Sequence, report: CacheReport) -> None:
        """Its turn has come, with what the prefix cache knows of its tokens. The first report counts: of the prompt."""
        self.sequence = sequence
        self.report = self.report or report
        if self.queue_seconds is None:
            self.queue_seconds = perf_counter() - self.submitted_at

    def shift(self) -> None:
        """Drop tokens, where there are more than the context holds."""
        first, end = self._context.shifted(self.tokens, self.params)
        # In one go: an interrupt between the two would leave them uncounted
        self.tokens[first:end], self.num_dropped = [], self.num_dropped + end - first

    def rows(self, count: int, drafted: list[int]) -> Rows:
        """What a step computes of it: `count` of the tokens that are left, and with the last of these a draft.

        Errors: GrammarError for a constraint that came to a limit.
        """
        assert self.sequence is not None
        start = self.sequence.length
        tokens = self.tokens[start : start + count]
        scored = () if self.reads_cache else self._scored(start, start + len(tokens))
        if start + len(tokens) < len(self.tokens):
            return Rows(self.sequence, tokens, scored)
        wanted = range(len(tokens) - 1, len(tokens) + len(drafted))
        self.sampler.prepare(drafted, self.masks.prepare(len(self.ids), drafted) if self.masks else None)
        return Rows(self.sequence, tokens + drafted, [*scored, *wanted] if scored else wanted, self.sampler)

    def score(self, logits: NDArray[np.float32]) -> None:
        """Take logprobs of prompt tokens from logits [n][V] of a step, which are in the order of its rows."""
        assert self.params.prompt_logprobs is not None
        done = len(self.prompt_logprobs) + 1
        tokens = self.tokens[done : min(done + len(logits), self._num_scored + 1)]
        self.prompt_logprobs += logprobs_of(logits[: len(tokens)], tokens, self.params.prompt_logprobs)
        self.reads_cache = len(self.prompt_logprobs) == self._num_scored

    def take(self, rows: Rows, drafted: list[int], seconds: float, seen: Observation | None = None) -> None:
        """Learn what the step of these rows chose, and keep what was seen of it."""
        if self._has_chosen:
            self.decode_seconds += seconds
        else:
            self.prefill_seconds += seconds
        if self.num_left > 0:
            self._keep(seen, 0, 0)
            return
        self._has_chosen = True
        accepted = self._accept(len(rows.tokens), drafted) if drafted else 0
        new = self.sampler.accept(accepted + 1)
        self._keep(seen, len(drafted), accepted)
        self.controller.update(new)
        for j, token in enumerate(new):
            if self.matcher is not None:
                self.matcher.accept(token)
            self._add(token, None if self.params.logprobs is None else self.sampler.logprobs(j))
            if self.is_over:
                return
        if self.matcher is not None:
            self._force(self.matcher)

    def finish(self, reason: FinishReason) -> None:
        if not self.is_over:
            self.finish_reason = reason

    def _scored(self, start: int, end: int) -> range:
        """Rows of a step at positions start..end whose next token is the prompt's, and has no logprobs yet."""
        return range(max(len(self.prompt_logprobs), start) - start, min(self._num_scored, end) - start)

    def _keep(self, seen: Observation | None, num_drafted: int, num_accepted: int) -> None:
        if seen is not None:
            seen.num_drafted = num_drafted
            seen.num_accepted = num_accepted
            self.observations.append(seen)

    def _accept(self, num_rows: int, drafted: list[int]) -> int:
        """How many drafted tokens were right, of a step of `num_rows` rows; the sequence forgets the others."""
        assert self.sequence is not None
        right = 0
        count = len(drafted)
        while right < count and self.sampler.chosen(right) == drafted[right]:
            right += 1
        self.sequence.accept(num_rows - count + right)
        self.num_drafted += count
        self.num_accepted += right
        return right

    def _force(self, matcher: Matcher) -> None:
        """Take the tokens that the constraint leaves no choice about; they are computed with the next step."""
        forced = matcher.forced()
        self.sampler.append(forced)
        self.controller.update(forced)
        for token in forced:
            matcher.accept(token)
            self._add(token, None)
            if self.is_over:
                return

    def _add(self, token: int, logprobs: Logprobs | None) -> None:
        self.ids.append(token)
        self.logprobs.append(logprobs)
        self.tokens.append(token)
        text, reason = self.detokenizer.add(token)
        self.pieces.append(Piece(text, token, logprobs))
        self.finish_reason = reason  # last: its reader, in another thread, then finds all pieces
