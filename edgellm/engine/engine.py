"""The engine: requests of any number computed together, step by step (continuous batching; Yu et al., Orca, OSDI 2022).

There is no thread that runs it: whoever waits for a piece runs steps, for all requests, until its own piece is there;
others who wait meanwhile find theirs. So one reader alone pays nothing for the company it could have, and an engine
that nobody reads from is idle.
"""

import math
import os
import threading
import time
import weakref
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager

from edgellm.engine.request import Piece, Request
from edgellm.engine.scheduler import in_turn, share, should_wait
from edgellm.engine.speculate import CostModel, IndexedText, SessionTexts
from edgellm.errors import ClosedError, EdgeLLMError
from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.kv import KVCache, KVMemoryError, Sequence
from edgellm.memory.prefix import PrefixCache
from edgellm.model.probe import Observation, run_watched
from edgellm.model.step import Rows, Stepper
from edgellm.model.team import Team

MAX_RUNNING = 32  # requests in a step
COSTS_DEPTH = 1024  # tokens behind which steps are measured
OBSERVED = 4  # of so many steps of one row the time of one is learned from: that takes 14 us
MAX_DRAFT_ROWS = 16  # rows of a step with drafts: beyond, a row costs as much as a step of its own


class Engine:
    """Runs the requests of one model. For any number of threads."""

    def __init__(self, stepper: Stepper, team: Team, cache: KVCache, prefixes: PrefixCache, *, context: int) -> None:
        self.session = SessionTexts()
        self.prefixes = prefixes
        self._stepper, self._team, self._cache, self._context = stepper, team, cache, context
        self._requests: list[Request] = []  # that are not over, as they came
        # Not reentrant: a stream may be collected, and closed, while this very thread holds it
        self._lock = threading.Lock()
        self._changed, self._num_waiting = threading.Condition(self._lock), 0
        self._is_driven = self._is_closed = self._has_ended = False
        self._pid = os.getpid()
        self._costs_depth = max(1, min(COSTS_DEPTH, context - MAX_DRAFT_ROWS))
        self.costs = CostModel(self._measure, depth=self._costs_depth)
        weakref.finalize(self, team.close)  # an engine that nobody closed must not leave threads behind

    def submit(self, request: Request) -> None:
        """Let it take part from the next step on. Errors: ClosedError; KVMemoryError for what can never fit."""
        needed = -(-min(len(request.tokens), self._context) // KV_BLOCK)  # what is more is shifted out first
        if needed > self._cache.num_blocks:
            raise KVMemoryError(
                f"the prompt's {len(request.tokens)} tokens need {needed} KV blocks, there are "
                f"{self._cache.num_blocks}; load the model with more kv_memory"
            )
        with self._lock:
            self.check_open()
            self._requests.append(request)

    def next_piece(self, request: Request) -> Piece | None:
        """The next piece of a request, computed if need be; None at its end. Errors: what ended it."""
        self._check_process()
        drives = False
        try:
            with self._lock:
                while self._is_driven and not request.pieces and not request.is_over:
                    self._wait()
                if request.pieces:
                    return request.pieces.popleft()
                if request.error is not None:
                    raise request.error
                if request.finish_reason is not None:
                    return None
                self._check_not_closed()
                self._is_driven = drives = True  # in one go: an interrupt may come behind every call
            while not request.pieces and not request.is_over:
                self._step()
            if request.pieces:
                return request.pieces.popleft()
        finally:
            if drives:
                self._is_driven = False  # here, where no interrupt can come before
                self._release()
        return self.next_piece(request)

    def cancel(self, request: Request) -> None:
        """End a request, at once or behind the step that runs. Never waits, so that it may come from anywhere."""
        request.is_cancelled = True
        if os.getpid() == self._pid and self._lock.acquire(blocking=False):
            try:
                if not self._is_driven:
                    self._end_over()
                    self._tell()
            finally:
                self._lock.release()

    @contextmanager
    def alone(self) -> Iterator[Stepper]:
        """The stepper for oneself, between two steps. Errors: ClosedError."""
        self._check_process()
        drives = False
        try:
            with self._lock:
                while self._is_driven:
                    self._wait()
                self._check_not_closed()
                self._is_driven = drives = True
            yield self._stepper
        finally:
            if drives:
                self._is_driven = False  # here, where no interrupt can come before
                self._release()

    def close(self) -> None:
        """End all requests, with ClosedError for their readers, and the threads. A step that runs is finished.

        Whoever closes it at the same time returns when all is over; a forked child just leaves it.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._is_closed = True  # which ends the reader that drives at its next step
            while self._is_driven:
                self._wait()
            if self._has_ended:
                return
            self._has_ended = True
            for request in self._requests:
                request.error = ClosedError("the model was closed; load it again to use it")
            self._end_over()
            self._tell()
            self._team.close()
            self._stepper.close()

    @property
    def num_free_blocks(self) -> int:
        self._check_process()
        with self._lock:
            if not self._is_driven:
                self._end_over()
            return self._cache.num_free

    def _step(self) -> None:
        """One step for whoever takes part; called by the one who drives, and who alone may touch the requests then."""
        with self._lock:
            self._tell()  # what the step before made
            work = self._plan()
        lengths = [request.sequence.length for request, _ in work if request.sequence]
        taken = 0
        try:
            if work:
                begin = time.perf_counter()
                seen = self._run(work)
                seconds = time.perf_counter() - begin
            for request, rows in work:
                taken += 1
                self._take(request, rows, seconds, seen.get(request))
        except BaseException:
            # Who was not reached is as before the step, and computes it again; who was interrupted is cancelled
            for (request, _), length in list(zip(work, lengths, strict=True))[taken:]:
                assert request.sequence is not None
                request.sequence.truncate(min(length, request.sequence.length))
            if taken:
                work[taken - 1][0].is_cancelled = True
            raise

    def _run(self, work: list[tuple[Request, Rows]]) -> dict[Request, Observation]:
        """The step; what was seen of requests with a probe."""
        batch, probes = [rows for _, rows in work], [request.probe for request, _ in work]
        if not any(probes):
            self._stepper.run(batch)
            self._score(work)
            return {}
        seen = run_watched(self._stepper, batch, probes)
        self._score(work)
        return {request: found for (request, _), found in zip(work, seen, strict=True) if found is not None}

    def _score(self, work: list[tuple[Request, Rows]]) -> None:
        """Prompt logprobs, while the logits are there."""
        at = 0
        for request, rows in work:
            if not request.reads_cache:
                request.score(self._stepper.logits[at : at + len(rows.logits)])
            at += len(rows.logits)

    def _take(self, request: Request, rows: Rows, seconds: float, seen: Observation | None) -> None:
        sequence = request.sequence
        assert sequence is not None
        before = sequence.length - len(rows.tokens)
        fills = before + 1 < len(request.tokens)
        is_told = len(rows.tokens) > 1 or sequence.length % OBSERVED == 0
        if is_told and request.drafts and len(self._requests) == 1:
            self.costs.observe(len(rows.tokens), before, seconds)
        try:
            request.take(rows, seconds, seen)
        except EdgeLLMError as error:  # a constraint that came to a limit
            request.error = error
        if request.is_over:
            return
        if fills:
            self.prefixes.share(sequence, request.tokens[: sequence.length])
        elif sequence.length // KV_BLOCK > before // KV_BLOCK:
            self.prefixes.commit(sequence, request.tokens[: sequence.length])

    def _plan(self) -> list[tuple[Request, Rows]]:
        """Requests and what is computed of them, with room reserved; some may end here for lack of memory."""
        self._check_not_closed()
        self._end_over()
        turn = in_turn(self._requests)[: min(MAX_RUNNING, self._stepper.max_rows)]
        decoding: list[Request] = []
        filling: list[Request] = []
        for request in turn:
            self._admit(request, turn)
            if request.sequence is not None:
                (filling if request.num_left > 1 else decoding).append(request)
        budgets = self._budgets(len(decoding), filling) if filling else {}
        work = []
        for request in [*decoding, *filling]:
            if request.sequence is None:  # another needed its memory
                continue
            draft = self._draft_length(len(decoding)) if request.drafts and not filling else 0
            try:
                rows = request.rows(budgets.get(request, 1), draft)
            except EdgeLLMError as error:  # a constraint that came to a limit
                request.error = error
                continue
            if rows.tokens and self._reserve(request, len(rows.tokens)):
                work.append((request, rows))
        return [(request, rows) for request, rows in work if request.sequence is not None]

    def _budgets(self, num_decoding: int, filling: Seq[Request]) -> dict[Request, int]:
        """Rows of a step for prompts: with company fewer, so that nobody waits long for the step's end."""
        rows = self._stepper.max_rows
        num_running = num_decoding + len(filling)
        budget = min(rows if num_running == 1 else -(-rows // 2), rows - num_decoding)
        scored = [request for request in filling if not request.reads_cache]
        # All that run may have a row with logits; what is left of those is for prompts that want them of every row
        most = dict.fromkeys(scored, 1 + (self._stepper.max_logit_rows - num_running) // max(len(scored), 1))
        wanted = [min(request.num_left, most.get(request, rows)) for request in filling]
        return dict(zip(filling, share(wanted, budget), strict=True))

    def _draft_length(self, num_decoding: int) -> int:
        """Tokens that each may draft. None where memory is short: nobody loses any to a guess or a measurement."""
        if self._cache.num_free * KV_BLOCK < self._costs_depth + MAX_DRAFT_ROWS:
            return 0
        return max(min(MAX_DRAFT_ROWS, self._stepper.max_rows) - num_decoding, 0) // num_decoding

    def _admit(self, request: Request, turn: Seq[Request]) -> None:
        if request.params.context_policy == "shift" and len(request.tokens) > self._context:
            self._give_back(request)
            request.shift()
        if request.sequence is None and not (request.reads_cache and should_wait(request, turn)):
            request.sequence, report = self.prefixes.begin(request.tokens, reads=request.reads_cache)
            request.report = request.report or report

    def _reserve(self, request: Request, count: int) -> bool:
        """Room for `count` tokens more, taken from those whose turn comes last: they compute again what they lose."""
        assert request.sequence is not None
        while True:
            try:
                request.sequence.reserve(request.sequence.length + count)
                return True
            except KVMemoryError as error:
                holders = [other for other in in_turn(self._requests) if other.sequence is not None]
                if holders == [request]:
                    request.error = error
                    return False
                self._give_back(holders[-1])
                if holders[-1] is request:
                    return False

    def _give_back(self, request: Request) -> None:
        """Its memory, which the prefix cache keeps while nobody needs it."""
        if request.sequence is not None:
            # More is computed than the text has, where it ends or was interrupted within a draft
            request.sequence.truncate(min(request.sequence.length, len(request.tokens)))
            self.prefixes.end(request.sequence, request.tokens[: request.sequence.length])
            request.sequence = None

    def _end_over(self) -> None:
        """Let go of the requests that are over or cancelled."""
        for request in tuple(self._requests):
            if request.is_cancelled:
                request.finish("cancelled")
            if request.is_over:
                self._give_back(request)
                self._requests.remove(request)  # only now: an interrupt leaves the others to the next time
                self.session.add(IndexedText(request.tokens))

    def _release(self) -> None:
        with self._lock:
            if not self._is_driven:  # by another already
                self._end_over()
            self._tell()

    def _wait(self) -> None:
        """Until somebody tells that something changed. The caller holds the lock."""
        self._num_waiting += 1
        try:
            self._changed.wait()
        finally:
            self._num_waiting -= 1

    def _tell(self) -> None:
        if self._num_waiting:  # who decodes alone has nobody to tell, and every call costs
            self._changed.notify_all()

    def check_open(self) -> None:
        """Errors: ClosedError."""
        self._check_process()
        self._check_not_closed()

    def _check_not_closed(self) -> None:
        if self._is_closed:
            raise ClosedError("the model was closed; load it again to use it")

    def _check_process(self) -> None:
        """Before the lock is taken: another thread of the parent may have held it. Errors: ClosedError."""
        if os.getpid() != self._pid:
            raise ClosedError(
                "the process was forked, and threads do not come along; load the model again in the child"
            )

    def _measure(self, rows: int, depth: int) -> float:
        """Seconds of a step of `rows` rows behind `depth` tokens, whatever they are."""
        sequence = Sequence(self._cache)
        rows = min(rows, self._stepper.max_rows)
        depth = min(depth, self._context - rows)
        try:
            sequence.reserve(depth + rows)
            seconds = math.inf
            for _ in range(3):  # the first warms up, and another program may come in between
                sequence.length = depth
                begin = time.perf_counter()
                self._stepper.run([Rows(sequence, [0] * rows, range(rows))])
                seconds = min(seconds, time.perf_counter() - begin)
        finally:
            sequence.truncate(0)
        return seconds
