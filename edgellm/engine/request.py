"""One answer in the making: its text so far, what is computed of it, and the pieces not taken yet."""

from collections import deque
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgellm.backends.base import Rows, SamplerSlot
from edgellm.engine.constrain import Matcher
from edgellm.engine.logprobs import Logprobs, logprobs_of
from edgellm.engine.masks import Masks
from edgellm.engine.params import SamplingParams
from edgellm.engine.speculate import Controller
from edgellm.engine.stop import StopFinder
from edgellm.inspect.probe import Observation, Probe
from edgellm.memory.pool import KVMemoryError
from edgellm.memory.prefix import CacheReport
from edgellm.memory.sequence import Sequence
from edgellm.tokenizer import StreamDecoder, Tokenizer

FIRST_DRAFT = 8  # tokens of an answer before steps are measured for drafts: a short one is not worth it

FinishReason = Literal["stop", "length", "cancelled"]


class Piece(NamedTuple):
    """What one token adds: its text, empty while a character or a stop text is incomplete."""

    text: str
    id: int
    logprobs: Logprobs | None = None  # where SamplingParams.logprobs asks for them


class Request:
    """What the engine knows of an answer. Its tokens are the prompt's and the answer's, of which `sequence` holds the
    keys and values of the first `sequence.length`.
    """

    def __init__(
        self, prompt: list[int], params: SamplingParams, sampler: SamplerSlot, tokenizer: Tokenizer, *,
        context: int, controller: Controller, matcher: Matcher | None, masks: Masks | None, priority: int,
        probe: Probe | None = None,
    ) -> None:  # fmt: skip
        self.params, self.sampler, self.priority, self.probe = params, sampler, priority, probe
        self.drafts = params.speculation != "off"
        self.tokens, self.num_prompt_tokens = list(prompt), len(prompt)
        self.ids: list[int] = []  # generated, with the stop token
        self.logprobs: list[Logprobs | None] = []  # of these, where asked for and not forced
        self.prompt_logprobs: list[Logprobs] = []  # of the prompt's tokens behind the first, as far as computed
        self.text = ""
        self.pieces: deque[Piece] = deque()
        self.observations: deque[Observation] = deque()  # for the probe's callback
        self.finish_reason: FinishReason | None = None
        self.error: BaseException | None = None  # that ended it
        self.is_cancelled = False  # by its reader; the engine ends it at the next opportunity
        self.sequence: Sequence | None = None  # None while it waits for memory or its turn
        self.report: CacheReport | None = None  # what the prefix cache knew of the prompt
        self.num_dropped = 0  # tokens that a full context shifted out
        self.num_drafted = self.num_accepted = 0
        self.prefill_seconds = self.decode_seconds = 0.0
        self._tokenizer, self._context = tokenizer, context
        self._num_scored = 0 if params.prompt_logprobs is None else len(prompt) - 1  # prompt tokens with logprobs
        self.reads_cache = self._num_scored == 0  # else the logits of all tokens are wanted, so all are computed
        self.masks, self._controller, self._matcher = masks, controller, matcher
        self._decoder = StreamDecoder(tokenizer, previous=prompt[-1])
        self._stops = StopFinder(params.stop)
        room = context - len(prompt) + 1
        limit = params.max_tokens or (room if params.context_policy != "shift" else None)
        self._limit = min(limit, room) if limit and params.context_policy == "stop" else limit
        self._drafted: list[int] = []
        self._has_chosen = False  # a token, as opposed to those that a constraint forces
        controller.update(prompt)
        if matcher is not None:
            self._force(matcher)

    @property
    def is_over(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def num_left(self) -> int:
        """Tokens still to be computed before the next can be chosen."""
        return len(self.tokens) - (self.sequence.length if self.sequence else 0)

    @property
    def num_shared(self) -> int:
        return self.report.num_cached_tokens if self.report else 0

    def shift(self) -> None:
        """Drop tokens behind the first `context_keep`, so that half of the context is free again."""
        keep = min(self.params.context_keep, self._context // 4)
        newest = max(self._context // 2, 1) - keep
        dropped = len(self.tokens) - keep - newest
        # In one go: an interrupt between the two would leave them uncounted
        self.tokens[keep : keep + dropped], self.num_dropped = [], self.num_dropped + dropped

    def rows(self, budget: int, max_draft: int) -> Rows:
        """What a step computes of it: at most `budget` tokens that are left, and a draft behind the last."""
        assert self.sequence is not None
        start = self.sequence.length
        tokens = self.tokens[start : start + budget]
        scored = () if self.reads_cache else self._scored(start, start + len(tokens))
        if start + len(tokens) < len(self.tokens):
            return Rows(self.sequence, tokens, scored)
        self._drafted = self._draft(max_draft) if self.drafts else []
        wanted = range(len(tokens) - 1, len(tokens) + len(self._drafted))
        self.sampler.prepare(self._drafted, self.masks.prepare(self._drafted) if self.masks else None)
        return Rows(self.sequence, tokens + self._drafted, [*scored, *wanted] if scored else wanted, self.sampler)

    def score(self, logits: NDArray[np.float32]) -> None:
        """Take logprobs of prompt tokens from logits [n][V] of a step, which are in the order of its rows."""
        assert self.params.prompt_logprobs is not None
        done = len(self.prompt_logprobs) + 1
        tokens = self.tokens[done : min(done + len(logits), self._num_scored + 1)]
        self.prompt_logprobs += logprobs_of(logits[: len(tokens)], tokens, self.params.prompt_logprobs)
        self.reads_cache = len(self.prompt_logprobs) == self._num_scored

    def take(self, rows: Rows, seconds: float, seen: Observation | None = None) -> None:
        """Learn what the step of these rows chose, and keep what was seen of it."""
        if self._has_chosen:
            self.decode_seconds += seconds
        else:
            self.prefill_seconds += seconds
        if self.num_left > 0:
            if seen is not None:
                self._keep(seen, 0)
            return
        self._has_chosen = True
        right = self._num_right(len(rows.tokens)) if self._drafted else 0
        new = self.sampler.accept(right + 1)
        if seen is not None:
            self._keep(seen, right)
        self._controller.update(new)
        for j, token in enumerate(new):
            if self._matcher is not None:
                self._matcher.accept(token)
            self._add(token, None if self.params.logprobs is None else self.sampler.logprobs(j))
            if self.is_over:
                return
        if self._matcher is not None:
            self._force(self._matcher)

    def finish(self, reason: FinishReason) -> None:
        if not self.is_over:
            self.finish_reason = reason

    def _scored(self, start: int, end: int) -> range:
        """Rows of a step at positions start..end whose next token is the prompt's, and has no logprobs yet."""
        return range(max(len(self.prompt_logprobs), start) - start, min(self._num_scored, end) - start)

    def _keep(self, seen: Observation, accepted: int) -> None:
        seen.num_drafted, seen.num_accepted = len(self._drafted), accepted
        self.observations.append(seen)

    def _num_right(self, num_rows: int) -> int:
        """Drafted tokens that were right, of a step of `num_rows` rows; the sequence forgets the others."""
        assert self.sequence is not None
        right, count = 0, len(self._drafted)
        while right < count and self.sampler.chosen(right) == self._drafted[right]:
            right += 1
        self.sequence.accept(num_rows - count + right)
        self.num_drafted += count
        self.num_accepted += right
        return right

    def _draft(self, most: int) -> list[int]:
        if len(self.ids) < FIRST_DRAFT and not self._controller.is_ready:
            return []
        room = min(most, self._context - len(self.tokens))
        if self._limit is not None:
            room = min(room, self._limit - len(self.ids) - 1)
        try:
            drafted = self._controller.draft(max(room, 0))
        except KVMemoryError:  # there is no room to measure what drafts cost
            return []
        return drafted[: self._num_allowed(self._matcher, drafted)] if self._matcher and drafted else drafted

    def _num_allowed(self, matcher: Matcher, drafted: list[int]) -> int:
        """Drafted tokens before the first behind which the constraint forces others: those take no draw."""
        count = matcher.validate(drafted)
        for at, token in enumerate(drafted[:count]):
            matcher.accept(token)
            if matcher.forced():
                matcher.rollback(at + 1)
                return at
        matcher.rollback(count)
        return count

    def _force(self, matcher: Matcher) -> None:
        """Take the tokens that the constraint leaves no choice about; they are computed with the next step."""
        forced = matcher.forced()
        self.sampler.append(forced)
        self._controller.update(forced)
        for token in forced:
            matcher.accept(token)
            self._add(token, None)
            if self.is_over:
                return

    def _add(self, token: int, logprobs: Logprobs | None) -> None:
        self.ids.append(token)
        self.logprobs.append(logprobs)
        self.tokens.append(token)
        reason: FinishReason | None = None
        if token in self._tokenizer.stop_ids:
            text = self._stops.feed(self._decoder.flush()) + self._stops.flush()
            reason = "stop"
        else:
            text = self._stops.feed(self._decoder.feed(token))
            if self._stops.found:
                reason = "stop"
            elif self._limit is not None and len(self.ids) >= self._limit:
                text += self._stops.feed(self._decoder.flush()) + self._stops.flush()
                reason = "length"
        self.text += text
        self.pieces.append(Piece(text, token, logprobs))
        self.finish_reason = reason  # last: its reader, in another thread, then finds all pieces
