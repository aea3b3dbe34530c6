"""Which tokens may be chosen at each row of a request: what its constraint allows, and no end before `min_tokens`.

A mask is wanted when a row is sampled, which is last in a step. Most take 15 us, less than to hand them to another
thread, and are written before the step. Those of a grammar that can be read in many ways take milliseconds: where the
threads that compute leave a processor, another writes them beside the step, which waits for it before it samples.

SmolLM2, JSON by a recursive GBNF grammar, 1.5 ms a mask, tokens/s before and beside the step, on 2 cores: 142 and 153
with 1 thread, 336 and 274 with 2, for then one of them stands still while all wait.
"""

import time
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from edgellm.engine.constrain import Matcher

HANDOVER = 2e-4  # seconds of writing from which another thread does it: as long as it takes that to be there


class Masks:
    """Those of one request's rows."""

    def __init__(
        self, matcher: Matcher | None, vocabulary: int, *, beside: bool, end_token_ids: Iterable[int] = (),
        min_tokens: int = 0,
    ) -> None:  # fmt: skip
        """The matcher is the request's own, and left as it is; `beside` if a processor is left for another thread.

        The first `min_tokens` tokens are none of `end_token_ids`, unless the constraint leaves nothing else.
        """
        self._matcher = matcher
        self._words = -(-vocabulary // 32)
        self._beside = beside
        self._min_tokens = min_tokens
        self._no_end = np.full(self._words, -1, np.int32)
        for token in end_token_ids:
            self._no_end[token // 32] &= np.array(~(1 << token % 32) & 0xFFFFFFFF, np.uint32).view(np.int32)
        self._num_before_end = 0  # rows of the step in which no token may end the answer
        self._seconds = 0.0  # that a mask took last
        self._unwritten: tuple[NDArray[np.int32], Seq[int]] | None = None
        self._writing: Future[None] | None = None

    def prepare(self, num_tokens: int, drafted: Seq[int]) -> NDArray[np.int32] | None:
        """Tokens that may come after `num_tokens` of the answer and after each drafted one, int32 [1 + drafted][V/32];
        see Matcher.fill_mask. None where all may.

        They are written now, or between `start` and `finish`. Errors: GrammarError.
        """
        self.finish()  # those of a step that was interrupted: the matcher is for one thread at a time
        self._num_before_end = self._min_tokens - num_tokens
        if self._matcher is None and self._num_before_end <= 0:
            return None
        masks = np.empty((1 + len(drafted), self._words), np.int32)
        if self._beside and self._seconds * len(masks) >= HANDOVER:
            self._unwritten = masks, drafted
        else:
            self._write(masks, drafted)
        return masks

    def start(self, pool: ThreadPoolExecutor) -> bool:
        """Let the pool write what is not written; whether there is any."""
        if self._unwritten is None:
            return False
        self._writing = pool.submit(self._write, *self._unwritten)
        self._unwritten = None
        return True

    def finish(self) -> None:
        """Return when all is written. Errors: GrammarError."""
        self._unwritten = None
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _write(self, masks: NDArray[np.int32], drafted: Seq[int]) -> None:
        begin = time.perf_counter()
        masks.fill(-1)  # what an error leaves may be sampled by, though nobody reads it
        if self._matcher is not None:
            self._matcher.fill_mask(masks[0])
            for j, token in enumerate(drafted, 1):
                self._matcher.accept(token)
                self._matcher.fill_mask(masks[j])
            self._matcher.rollback(len(drafted))
        for mask in masks[: max(self._num_before_end, 0)]:
            if (mask & self._no_end).any():
                mask &= self._no_end
        self._seconds = (time.perf_counter() - begin) / len(masks)
