"""The engine: requests of any number computed together, step by step (continuous batching; Yu et al., Orca, OSDI 2022).

There is no thread that runs it: whoever waits for a piece runs steps, for all requests, until its own piece is there;
others who wait meanwhile find theirs. So one reader alone pays nothing for the company it could have, and an engine
that nobody reads from is idle.
"""

import os
import threading
import time
import weakref
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from edgellm.backends.base import Backend, Rows, Runner, SamplerSlot, run_step
from edgellm.engine.params import SamplingParams
from edgellm.engine.planner import MAX_DRAFT_ROWS, Planner
from edgellm.engine.request import Piece, Request
from edgellm.engine.speculate import CostModel, IndexedText, SessionTexts
from edgellm.errors import ClosedError, EdgeLLMError
from edgellm.inspect.probe import Observation, run_watched
from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.kv import KVCache
from edgellm.memory.prefix import PrefixCache
from edgellm.memory.sequence import Sequence
from edgellm.runtime.graph import Mark

COSTS_DEPTH = 1024  # tokens behind which steps are measured
MEASUREMENTS, MEASURED_SECONDS = 6, 0.03  # of a step, at most
OBSERVED = 8  # of so many steps of one row the time of one is learned from: that takes 14 us


class Engine:
    """Runs the requests of one model. For any number of threads."""

    def __init__(
        self, runner: Runner, backend: Backend, cache: KVCache, prefixes: PrefixCache, *, context: int
    ) -> None:
        self.session = SessionTexts()
        self.prefixes, self.leaves_a_processor = prefixes, backend.leaves_a_processor
        self.runner, self._backend, self._cache, self._context = runner, backend, cache, context
        # Not reentrant: a stream may be collected, and closed, while this very thread holds it
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, "edgellm-masks")  # which starts its thread when there is something to write
        self._changed, self._num_waiting = threading.Condition(self._lock), 0
        self._is_driven = self._is_closed = self._has_ended = False
        self._pid = os.getpid()
        depth = max(1, min(COSTS_DEPTH, context - MAX_DRAFT_ROWS))
        self.costs = CostModel(self._measure, depth=depth)
        self._planner = Planner(
            cache, prefixes, context=context, max_rows=runner.max_rows, max_logit_rows=runner.max_logit_rows,
            measured_tokens=depth + MAX_DRAFT_ROWS,
        )  # fmt: skip
        weakref.finalize(self, backend.close)  # an engine that nobody closed must not leave threads behind

    def sampler(self, params: SamplingParams, prompt: Seq[int], breakers: Seq[int]) -> SamplerSlot:
        """How a request's tokens are chosen. Errors: OptionError."""
        return self.runner.sampler(params, prompt, breakers)

    def submit(self, request: Request) -> None:
        """Let it take part from the next step on. Errors: ClosedError; KVMemoryError for what can never fit."""
        self._planner.check_fits(request)
        with self._lock:
            self.check_open()
            self._planner.requests.append(request)

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
    def alone(self) -> Iterator[Runner]:
        """The runner for oneself, between two steps. Errors: ClosedError."""
        self._check_process()
        drives = False
        try:
            with self._lock:
                while self._is_driven:
                    self._wait()
                self._check_not_closed()
                self._is_driven = drives = True
            yield self.runner
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
            for request in self._planner.requests:
                request.error = ClosedError("the model was closed; load it again to use it")
            self._end_over()
            self._tell()
            self._pool.shutdown()
            self._backend.close()
            self.runner.close()

    @property
    def num_free_blocks(self) -> int:
        self._check_process()
        with self._lock:
            if not self._is_driven:
                self._end_over()
            return self._cache.num_free

    def check_integrity(self) -> None:
        """The books of the memory balance; with no request under way, nobody holds any."""
        self._check_process()
        with self._lock:
            if not self._is_driven:
                self._end_over()
                self.prefixes.check_integrity()
                if not self._planner.requests:
                    self._cache.check_nothing_is_held()

    def _step(self) -> None:
        """One step for whoever takes part; called by the one who drives, and who alone may touch the requests then."""
        with self._lock:
            self._tell()  # what the step before made
            self._check_not_closed()
            self._end_over()
            work = self._planner.plan()
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
                request.sequence.rewind(min(length, request.sequence.length))
            if taken:
                work[taken - 1][0].is_cancelled = True
            raise

    def _run(self, work: list[tuple[Request, Rows]]) -> dict[Request, Observation]:
        """The step; what was seen of requests with a probe."""
        batch, probes = [rows for _, rows in work], [request.probe for request, _ in work]
        written = [request for request, _ in work if request.masks is not None and request.masks.start(self._pool)]
        if not any(probes):
            watch = {Mark("sample"): lambda: _finish_masks(written)} if written else None
            run_step(self.runner, batch, watch=watch)
            self._score(work)
            return {}
        _finish_masks(written)
        seen = run_watched(self.runner, batch, probes)
        self._score(work)
        return {request: found for (request, _), found in zip(work, seen, strict=True) if found is not None}

    def _score(self, work: list[tuple[Request, Rows]]) -> None:
        """Prompt logprobs, while the logits are there."""
        at = 0
        for request, rows in work:
            if not request.reads_cache:
                request.score(self.runner.logits[at : at + len(rows.logits)])
            at += len(rows.logits)

    def _take(self, request: Request, rows: Rows, seconds: float, seen: Observation | None) -> None:
        sequence = request.sequence
        assert sequence is not None
        if request.is_over:  # by an error of its masks
            return
        before = sequence.length - len(rows.tokens)
        fills = before + 1 < len(request.tokens)
        is_told = len(rows.tokens) > 1 or sequence.length % OBSERVED == 0
        if is_told and request.drafts and len(self._planner.requests) == 1:
            self.costs.observe(len(rows.tokens), before, seconds)
        try:
            request.take(rows, seconds, seen)
        except EdgeLLMError as error:  # a constraint that came to a limit
            request.error = error
        if request.is_over:
            return
        if fills:
            ends_prompt = before < request.num_prompt_tokens - 1 <= sequence.length
            self.prefixes.share(sequence, request.tokens[: sequence.length], keeps_state=ends_prompt)
        elif sequence.length // KV_BLOCK > before // KV_BLOCK:
            self.prefixes.commit(sequence, request.tokens[: sequence.length])

    def _end_over(self) -> None:
        """Let go of the requests that are over or cancelled."""
        for request in tuple(self._planner.requests):
            if request.is_cancelled:
                request.finish("cancelled")
            if request.is_over:
                self._planner.give_back(request)
                self._planner.requests.remove(request)  # only now: an interrupt leaves the others to the next time
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
        """Seconds of a step of `rows` rows behind `depth` tokens, whatever they are: the least of a few."""
        sequence = Sequence(self._cache)
        rows = min(rows, self.runner.max_rows)
        depth = min(depth, self._context - rows)
        found: list[float] = []
        try:
            sequence.skip(depth)
            while len(found) < 2 or (len(found) < MEASUREMENTS and sum(found) < MEASURED_SECONDS):  # one warms up
                sequence.reserve(depth + rows)
                begin = time.perf_counter()
                run_step(self.runner, [Rows(sequence, [0] * rows, range(rows))])
                found.append(time.perf_counter() - begin)
                sequence.accept(0)
        finally:
            sequence.rewind(0)
        return min(found)


def _finish_masks(requests: Seq[Request]) -> None:
    """What goes wrong with one is its own end."""
    for request in requests:
        assert request.masks is not None
        try:
            request.masks.finish()
        except EdgeLLMError as error:  # a constraint that came to a limit
            request.error = error
