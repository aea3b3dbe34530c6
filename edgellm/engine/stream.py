"""An answer as it comes: an iterator of pieces, for loops with and without `async`."""

from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Self

from edgellm.engine.answer import Answer, Timings, Usage
from edgellm.engine.detokenizer import FinishReason
from edgellm.engine.driver import Driver
from edgellm.engine.logprobs import Logprobs
from edgellm.engine.request import Piece, Request, Status
from edgellm.memory.prefix import CacheReport


class Stream(Iterator[Piece], AsyncIterator[Piece]):
    """Pieces of an answer. `close` ends it within one step, from any thread; so does leaving a `with` block."""

    def __init__(self, driver: Driver, request: Request, prompt_token_ids: list[int]) -> None:
        self.prompt_token_ids = prompt_token_ids
        self.prompt_logprobs = request.prompt_logprobs  # of the tokens after the first, as far as computed
        self.seed = request.sampler.seed
        self._driver = driver
        self._request = request
        driver.submit(request)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        try:
            piece = self._driver.next_piece(self._request)
        except BaseException:
            self.close()
            raise
        self._show()
        if piece is None:
            raise StopIteration
        return piece

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        """Cancelling the task ends the answer."""
        try:
            piece = await self._driver.next_piece_async(self._request)
        except BaseException:
            self.close()
            raise
        self._show()
        if piece is None:
            raise StopAsyncIteration
        return piece

    def result(self) -> Answer:
        """Read to the end; all of the answer."""
        deque(self, maxlen=0)
        return self.answer

    async def result_async(self) -> Answer:
        """As `result`, for a task of asyncio."""
        async for _ in self:
            pass
        return self.answer

    def _show(self) -> None:
        """What the probe saw meanwhile; here, where no step runs, so that the callback may use the model."""
        probe = self._request.probe
        seen = self._request.observations
        while probe is not None and seen:
            probe.callback(seen.popleft())

    def close(self) -> None:
        """End the answer and free its memory; a step that another thread is in ends first, and frees it there."""
        self._driver.cancel(self._request)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Only noted, for the engine to find: the collector may run anywhere, even where a lock is held
        if hasattr(self, "_request"):  # not where making it failed
            self._request.is_cancelled = True

    @property
    def status(self) -> Status:
        return self._request.status

    @property
    def token_ids(self) -> list[int]:
        """Tokens so far, with the stop token."""
        return self._request.ids

    @property
    def logprobs(self) -> list[Logprobs | None]:
        """Of `token_ids`: None where not asked for, and where a constraint forced the token."""
        return self._request.logprobs

    @property
    def text(self) -> str:
        return self._request.detokenizer.text

    @property
    def finish_reason(self) -> FinishReason | None:
        return self._request.finish_reason

    @property
    def cache_report(self) -> CacheReport | None:
        """What the prefix cache knew of the prompt, and why not more; None until the answer begins."""
        return self._request.report

    @property
    def usage(self) -> Usage:
        request = self._request
        return Usage(
            len(self.prompt_token_ids), request.num_shared, len(request.ids),
            request.num_dropped, request.num_drafted, request.num_accepted,
        )  # fmt: skip

    @property
    def timings(self) -> Timings:
        request = self._request
        queue_ms = None if request.queue_seconds is None else request.queue_seconds * 1e3
        if not request.prefill_seconds:
            return Timings(queue_ms, None, None, None)
        further = len(request.ids) - 1
        computed = len(self.prompt_token_ids) - request.num_shared
        return Timings(
            queue_ms=queue_ms,
            first_token_ms=request.prefill_seconds * 1e3,
            prefill_tokens_per_second=computed / request.prefill_seconds,
            decode_tokens_per_second=further / request.decode_seconds if further and request.decode_seconds else None,
        )

    @property
    def answer(self) -> Answer:
        """The answer as far as it is."""
        return Answer(
            self.text, list(self.token_ids), list(self.logprobs), self.finish_reason,
            self._request.detokenizer.stop_reason, self.prompt_token_ids, list(self.prompt_logprobs),
            self.usage, self.timings, self.seed, self.cache_report,
        )  # fmt: skip
