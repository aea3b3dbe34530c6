"""An answer as its reader sees it: an iterator of pieces, for loops with and without `async`."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Self

from edgellm.engine.engine import Engine
from edgellm.engine.logprobs import Logprobs
from edgellm.engine.request import FinishReason, Piece, Request
from edgellm.memory.prefix import CacheReport


@dataclass(frozen=True)
class Usage:
    num_prompt_tokens: int
    num_cached_tokens: int  # of the prompt, not computed again
    num_completion_tokens: int  # with the stop token
    num_dropped_tokens: int = 0  # that a full context shifted out
    num_drafted_tokens: int = 0  # proposed to the model
    num_accepted_tokens: int = 0  # of these, right


@dataclass(frozen=True)
class Timings:
    """Time spent in the engine, without what the caller did between pieces."""

    first_token_ms: float | None  # from the request to its first token
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None


class Stream(Iterator[Piece], AsyncIterator[Piece]):
    """Pieces of an answer. `close` ends it within one step, from any thread; so does leaving a `with` block."""

    def __init__(self, engine: Engine, request: Request, prompt_ids: list[int]) -> None:
        self.prompt_ids = prompt_ids
        self.prompt_logprobs = request.prompt_logprobs  # of prompt_ids[1:], as far as computed; none unless asked for
        self.seed = request.sampler.seed
        self._engine, self._request = engine, request
        engine.submit(request)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        try:
            piece = self._engine.next_piece(self._request)
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
        """Waits in a thread of asyncio's pool; cancelling the task ends the answer."""
        import asyncio  # 20 ms, for those who have it already

        try:
            piece = await asyncio.to_thread(self._engine.next_piece, self._request)
        except BaseException:
            self.close()
            raise
        self._show()
        if piece is None:
            raise StopAsyncIteration
        return piece

    def _show(self) -> None:
        """What the probe saw meanwhile; here, where no step runs, so that the callback may use the model."""
        probe, seen = self._request.probe, self._request.observations
        while probe is not None and seen:
            probe.callback(seen.popleft())

    def close(self) -> None:
        """End the answer and free its memory; a step that another thread is in ends first, and frees it there."""
        self._engine.cancel(self._request)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Only noted, for the engine to find: the collector may run anywhere, even where a lock is held
        if hasattr(self, "_request"):  # not where making it failed
            self._request.is_cancelled = True

    @property
    def ids(self) -> list[int]:
        """Tokens so far, with the stop token."""
        return self._request.ids

    @property
    def logprobs(self) -> list[Logprobs | None]:
        """Of `ids`: None where not asked for, and where a constraint forced the token."""
        return self._request.logprobs

    @property
    def text(self) -> str:
        return self._request.text

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
            len(self.prompt_ids), request.num_shared, len(request.ids),
            request.num_dropped, request.num_drafted, request.num_accepted,
        )  # fmt: skip

    @property
    def timings(self) -> Timings:
        request = self._request
        if not request.prefill_seconds:
            return Timings(None, None, None)
        further, computed = len(request.ids) - 1, len(self.prompt_ids) - request.num_shared
        return Timings(
            first_token_ms=request.prefill_seconds * 1e3,
            prefill_tokens_per_second=computed / request.prefill_seconds if request.prefill_seconds else None,
            decode_tokens_per_second=further / request.decode_seconds if further and request.decode_seconds else None,
        )
