"""An answer in the making: an iterator of pieces that computes each when it is asked for."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Literal, Protocol, Self

from edgellm.engine.logprobs import Logprobs
from edgellm.engine.params import SamplingParams
from edgellm.engine.sampler import Sampler
from edgellm.engine.stop import StopFinder
from edgellm.memory.kv import Sequence
from edgellm.model.step import Rows
from edgellm.tokenizer import StreamDecoder, Tokenizer

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Piece:
    """What one token adds: its text, empty while a character or a stop text is incomplete."""

    text: str
    id: int
    logprobs: Logprobs | None = None  # where SamplingParams.logprobs asks for them


@dataclass(frozen=True)
class Usage:
    num_prompt_tokens: int
    num_cached_tokens: int  # of the prompt, not computed again
    num_completion_tokens: int  # with the stop token


@dataclass(frozen=True)
class Timings:
    """Time spent in the engine, without what the caller did between pieces."""

    first_token_ms: float | None  # from the request to its first token
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None


class Runner(Protocol):
    """What a stream needs of a model."""

    tokenizer: Tokenizer
    context: int  # tokens

    def step(self, rows: Rows) -> None: ...
    def new_sequence(self) -> Sequence: ...
    @property
    def max_rows(self) -> int: ...


class Stream(Iterator[Piece]):
    """Pieces of an answer. `close` ends it within one step, from any thread; so does leaving a `with` block."""

    def __init__(self, runner: Runner, prompt_ids: list[int], params: SamplingParams, sampler: Sampler) -> None:
        self.prompt_ids = prompt_ids
        self.ids: list[int] = []  # generated, with the stop token
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self.seed = sampler.seed
        self._runner, self._params, self._sampler = runner, params, sampler
        self._sequence = runner.new_sequence()
        self._decoder = StreamDecoder(runner.tokenizer, previous=prompt_ids[-1])
        self._stops = StopFinder(params.stop)
        self._limit = min(params.max_tokens or runner.context, runner.context - len(prompt_ids) + 1)
        self._busy = threading.Lock()
        self._cancelled = False
        self._prefill_seconds = self._decode_seconds = 0.0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        with self._busy:
            if self.finish_reason is not None:
                raise StopIteration
            try:
                token = self._prefill() if not self.ids else self._decode()
                if token is not None:
                    return self._piece(token)
            except BaseException:
                self._finish("cancelled")
                raise
            self._finish("cancelled")
            raise StopIteration

    def close(self) -> None:
        """End the answer and free its memory; a step that another thread is in ends first, and frees it there."""
        self._cancelled = True
        if self._busy.acquire(blocking=False):
            try:
                self._finish("cancelled")
            finally:
                self._busy.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    @property
    def usage(self) -> Usage:
        return Usage(len(self.prompt_ids), 0, len(self.ids))

    @property
    def timings(self) -> Timings:
        if not self.ids:
            return Timings(None, None, None)
        further = len(self.ids) - 1
        return Timings(
            first_token_ms=self._prefill_seconds * 1e3,
            prefill_tokens_per_second=len(self.prompt_ids) / self._prefill_seconds,
            decode_tokens_per_second=further / self._decode_seconds if further else None,
        )

    def _prefill(self) -> int | None:
        """Compute the prompt, a step of rows at a time; the first token, or None where cancelled on the way."""
        begin = perf_counter()
        prompt, size = self.prompt_ids, self._runner.max_rows
        for first in range(0, len(prompt), size):
            if self._cancelled:
                return None
            tokens = prompt[first : first + size]
            last = [len(tokens) - 1] if first + size >= len(prompt) else []
            self._step(tokens, last)
        self._prefill_seconds = perf_counter() - begin
        return self._sampler.accept()[0]

    def _decode(self) -> int | None:
        """Compute the last token; the next, or None where cancelled."""
        if self._cancelled:
            return None
        begin = perf_counter()
        self._step(self.ids[-1:], [0])
        self._decode_seconds += perf_counter() - begin
        return self._sampler.accept()[0]

    def _step(self, tokens: list[int], sampled: list[int]) -> None:
        self._sequence.reserve(self._sequence.length + len(tokens))
        self._runner.step(Rows(self._sequence, tokens, sampled, self._sampler.addresses() if sampled else []))

    def _piece(self, token: int) -> Piece:
        self.ids.append(token)
        if token in self._runner.tokenizer.stop_ids:
            text = self._stops.feed(self._decoder.flush()) + self._stops.flush()
            self._finish("stop")
        else:
            text = self._stops.feed(self._decoder.feed(token))
            if self._stops.found:
                self._finish("stop")
            elif len(self.ids) >= self._limit:
                text += self._stops.feed(self._decoder.flush()) + self._stops.flush()
                self._finish("length")
        self.text += text
        return Piece(text, token, self._sampler.logprobs(0))

    def _finish(self, reason: FinishReason) -> None:
        if self.finish_reason is None:
            self.finish_reason = reason
            self._sequence.truncate(0)
