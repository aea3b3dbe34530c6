"""Which tokens a constraint allows at each row of a request, found out while the step runs.

A mask is wanted when a row is sampled, which is last in a step. Most take 15 us, less than to hand them to another
thread, and are written before the step. Those of a grammar that can be read in many ways take milliseconds: where the
threads that compute leave a processor, another writes them beside the step, which waits for it before it samples.

SmolLM2, JSON by a recursive GBNF grammar, 1.5 ms a mask, tokens/s before and beside the step, on 2 cores: 142 and 153
with 1 thread, 336 and 274 with 2, for then one of them stands still while all wait.
"""

import time
from collections.abc import Sequence as Seq
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from edgellm.engine.constrain import Matcher

HANDOVER = 2e-4  # seconds of writing from which another thread does it: as long as it takes that to be there


class Masks:
    """Those of one request's rows."""

    def __init__(self, matcher: Matcher, vocabulary: int, *, beside: bool) -> None:
        """The matcher is the request's own, and left as it is; `beside` if a processor is left for another thread."""
        self._matcher, self._words, self._beside = matcher, -(-vocabulary // 32), beside
        self._seconds = 0.0  # that a mask took last
        self._unwritten: tuple[NDArray[np.int32], Seq[int]] | None = None
        self._writing: Future[None] | None = None

    def prepare(self, drafted: Seq[int]) -> NDArray[np.int32]:
        """Tokens that may come next and behind each drafted one, int32 [1 + drafted][V/32]; see Matcher.fill_mask.

        They are written now, or between `start` and `finish`. Errors: GrammarError.
        """
        self.finish()  # those of a step that was interrupted: the matcher is for one thread at a time
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
        self._matcher.fill_mask(masks[0])
        for j, token in enumerate(drafted, 1):
            self._matcher.accept(token)
            self._matcher.fill_mask(masks[j])
        self._matcher.rollback(len(drafted))
        self._seconds = (time.perf_counter() - begin) / len(masks)
