"""The engine: requests of any number computed together, step by step (continuous batching; Yu et al., Orca, OSDI 2022).

A step goes

    take in     requests that came since, and let go of those that are over
    schedule    whose turn it is, how many tokens of each, and who makes room (scheduler.py, without effects)
    draft       tokens that may come next (drafting.py)
    run         all rows together, while constraints write their masks
    take        what was chosen, and let the prefix cache know what was computed

Who calls `step` is the driver's matter (driver.py). One at a time does, and it alone touches requests and memory then.
"""

import time
from collections import deque
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor

from edgellm.backends.base import Rows, Runner, run_step
from edgellm.engine.context import Context
from edgellm.engine.drafting import Drafter
from edgellm.engine.request import Request
from edgellm.engine.scheduler import MAX_RUNNING, Room, Schedule, in_turn, may_begin, schedule
from edgellm.engine.speculate import CostModel
from edgellm.errors import EdgeLLMError, KVMemoryError
from edgellm.inspect.probe import Observation, run_watched
from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.kv import KVCache
from edgellm.memory.prefix import PrefixCache
from edgellm.runtime.graph import Mark

OBSERVED = 8  # of so many steps of one row the costs are learned from one: that takes 15 us, since all caches are cold

Work = tuple[Request, Rows, list[int]]  # what a step computes of a request, of which the last tokens are drafted


class Engine:
    """Runs the requests of one model. Call its methods only while driving it, but for `add`."""

    def __init__(
        self,
        runner: Runner,
        cache: KVCache,
        prefixes: PrefixCache,
        costs: CostModel,
        drafter: Drafter,
        *,
        context: Context,
    ) -> None:
        self.runner = runner
        self.prefixes = prefixes
        self.costs = costs
        self.requests: list[Request] = []  # that are not over, as they came
        self._new: deque[Request] = deque()
        self._cache = cache
        self._drafter = drafter
        self._context = context
        self._max_running = min(MAX_RUNNING, runner.max_rows)
        self._pool = ThreadPoolExecutor(1, "edgellm-masks")  # which starts its thread when there is something to write

    def add(self, request: Request) -> None:
        """Let it take part from the next step on, from any thread. Errors: KVMemoryError for what can never fit."""
        needed = -(-min(len(request.tokens), self._context.size) // KV_BLOCK)  # what is more is shifted out first
        if needed > self._cache.num_blocks:
            raise KVMemoryError(
                f"the prompt's {len(request.tokens)} tokens need {needed} KV blocks, there are "
                f"{self._cache.num_blocks}; load the model with more kv_memory"
            )
        self._new.append(request)

    @property
    def num_requests(self) -> int:
        """Those that are not over, as far as is known."""
        return len(self._new) + len(self.requests)

    @property
    def num_free_blocks(self) -> int:
        return self._cache.num_free

    def step(self) -> None:
        """One step for whoever takes part."""
        self.end_over()
        order = in_turn(self.requests)
        turn = [request for request in order[: self._max_running] if not request.is_parked]
        self._begin(turn)
        plan = self._schedule(turn, order[len(turn) :])
        for request in plan.preempted:
            self.give_back(request)
        work = self._work(plan)
        lengths = [rows.sequence.length for _, rows, _ in work]
        taken = 0
        try:
            if work:
                begin = time.perf_counter()
                seen = self._run(work)
                seconds = time.perf_counter() - begin
                self._learn(work, lengths, seconds)
            for request, rows, drafted in work:
                taken += 1
                self._take(request, rows, drafted, seconds, seen.get(request))
        except BaseException:
            # Requests not yet processed are rolled back to before the step; the interrupted one is cancelled
            for (_, rows, _), length in list(zip(work, lengths, strict=True))[taken:]:
                rows.sequence.rewind(min(length, rows.sequence.length))
            if taken:
                work[taken - 1][0].is_cancelled = True
            raise

    def end_over(self) -> None:
        """Take in those that came, and let go of those that are over or cancelled."""
        while self._new:
            self.requests.append(self._new[0])
            self._new.popleft()  # only now: an interrupt between would lose it
        for request in tuple(self.requests):
            if request.is_cancelled:
                request.finish("cancelled")
            if request.is_over:
                self.give_back(request)
                request.controller.close()
                self.requests.remove(request)  # only now: an interrupt leaves the others to the next time

    def give_back(self, request: Request) -> None:
        """Its memory, which the prefix cache keeps while nobody needs it."""
        if request.sequence is not None:
            # More is computed than the text has, where it ends or was interrupted within a draft
            request.sequence.rewind(min(request.sequence.length, len(request.tokens)))
            self.prefixes.free(request.sequence, request.tokens[: request.sequence.length])
            request.sequence = None

    def check_integrity(self) -> None:
        """The books of the memory balance; with no request under way, nobody holds any."""
        self.prefixes.check_integrity()
        if not self.requests:
            self._cache.check_nothing_is_held()

    def close(self) -> None:
        """Nothing is under way any more."""
        self._pool.shutdown()
        self.runner.close()

    def _begin(self, turn: Seq[Request]) -> None:
        """Memory for those that begin, with what the prefix cache knows of their prompts."""
        most = self._context.size
        for request in turn:
            if len(request.tokens) > most:
                self.give_back(request)
                request.shift()
            if request.sequence is None and may_begin(request, turn):
                request.begin(*self.prefixes.match_prefix(request.tokens, reads=request.reads_cache))

    def _schedule(self, turn: Seq[Request], others: Seq[Request]) -> Schedule:
        cache = self._cache
        runner = self.runner
        room = Room(
            runner.max_rows, runner.max_logit_rows, cache.free,
            cache.layout.state_interval if cache.is_recurrent else None,
        )  # fmt: skip
        return schedule(turn, [request for request in others if request.sequence is not None], room)

    def _work(self, plan: Schedule) -> list[Work]:
        """The rows of a step, with room reserved."""
        drafts = self._drafter.draft(list(plan.num_tokens), plan.max_draft) if plan.max_draft else {}
        work: list[Work] = []
        for request, count in plan.num_tokens.items():
            drafted = drafts.get(request, [])
            try:
                rows = request.rows(count, drafted)
                rows.sequence.reserve(rows.sequence.length + len(rows.tokens))
            except EdgeLLMError as error:  # a constraint that came to a limit; memory that is too small for one alone
                request.error = error
            else:
                work.append((request, rows, drafted))
        return work

    def _run(self, work: list[Work]) -> dict[Request, Observation]:
        """The step; what was seen of requests with a probe."""
        batch = [rows for _, rows, _ in work]
        if all(request.is_plain for request, _, _ in work):
            run_step(self.runner, batch)
            return {}
        probes = [request.probe for request, _, _ in work]
        written = [request for request, _, _ in work if request.masks is not None and request.masks.start(self._pool)]
        is_processed = any(request.params.logits_processors for request, _, _ in work)
        watch = {Mark("sample"): lambda: self._before_sampling(work, written)} if written or is_processed else None
        if not any(probes):
            run_step(self.runner, batch, watch=watch)
            self._score(work)
            return {}
        seen = run_watched(self.runner, batch, probes, watch)
        self._score(work)
        return {request: found for (request, _, _), found in zip(work, seen, strict=True) if found is not None}

    def _before_sampling(self, work: list[Work], written: Seq[Request]) -> None:
        """Masks, and what functions of the user make of the logits. What goes wrong with a request is its own end."""
        for request in written:
            assert request.masks is not None
            try:
                request.masks.finish()
            except EdgeLLMError as error:  # a constraint that came to a limit
                request.error = error
        end = 0
        for request, rows, _ in work:
            end += len(rows.logits)
            if rows.sampler is not None and request.params.logits_processors:
                logits = self.runner.read(Mark("sample"))[end - 1]
                try:
                    for process in request.params.logits_processors:
                        process(list(request.ids), logits)
                except Exception as error:  # the user's
                    request.error = error

    def _score(self, work: list[Work]) -> None:
        """Prompt logprobs, while the logits are there."""
        at = 0
        for request, rows, _ in work:
            if not request.reads_cache:
                request.score(self.runner.logits[at : at + len(rows.logits)])
            at += len(rows.logits)

    def _learn(self, work: list[Work], lengths: list[int], seconds: float) -> None:
        """What a step of so many rows takes."""
        rows = sum([len(rows.tokens) for _, rows, _ in work])
        if rows == 1 and lengths[0] % OBSERVED:
            return
        is_prompt = any(length + 1 < len(request.tokens) for (request, _, _), length in zip(work, lengths, strict=True))
        self.costs.observe(rows, sum(lengths) // len(lengths), seconds, is_prompt=is_prompt)

    def _take(self, request: Request, rows: Rows, drafted: list[int], seconds: float, seen: Observation | None) -> None:
        sequence = rows.sequence
        if request.is_over:  # by an error of its masks
            return
        before = sequence.length - len(rows.tokens)
        fills = before + 1 < len(request.tokens)
        try:
            request.take(rows, drafted, seconds, seen)
        except EdgeLLMError as error:  # a constraint that came to a limit
            request.error = error
        if request.is_over:
            return
        if fills:
            ends_prompt = before < request.num_prompt_tokens - 1 <= sequence.length
            self.prefixes.cache_tokens(sequence, request.tokens[: sequence.length], keeps_state=ends_prompt)
        elif sequence.length // KV_BLOCK > before // KV_BLOCK:
            self.prefixes.cache_blocks(sequence, request.tokens[: sequence.length])
