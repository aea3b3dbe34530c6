"""How well a model expects a text: perplexity over overlapping windows.

    tokens     0        512       1024      1536
    window 0   [---------scored--------]
    window 1            [..before..|---scored--]           context 1024, stride 512
    window 2                       [..before..|---scored--]

Each token but the first is scored once, with at least context - stride tokens before it where the text has them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CHUNK = 64  # rows of logits turned into probabilities at a time: 25 MB for a vocabulary of 49,152

Logits = Callable[[Sequence[int]], NDArray[np.float32]]  # ids of a window -> [T, V]


@dataclass(frozen=True)
class Perplexity:
    mean_loss: float  # nats per token
    tokens: int  # that were scored

    @property
    def perplexity(self) -> float:
        return math.exp(self.mean_loss)


def measure(
    logits: Logits, ids: Sequence[int], *, context: int, stride: int, progress: Callable[[int, int], None]
) -> Perplexity:
    """Perplexity of at least two ids, 1 <= stride < context; progress hears (windows done, windows in all)."""
    places = list(windows(len(ids), context, stride))
    total = 0.0
    for done, (start, first) in enumerate(places):
        progress(done, len(places))
        window = ids[start : start + context]
        total += losses(logits(window)[first:-1], window[first + 1 :]).sum()
    progress(len(places), len(places))
    return Perplexity(float(total) / (len(ids) - 1), len(ids) - 1)


def windows(count: int, context: int, stride: int) -> Iterator[tuple[int, int]]:
    """Where each window begins, and the first of its tokens whose follower is scored, for a text of `count` tokens."""
    for start in range(0, count - 1, stride):
        yield start, 0 if start == 0 else context - stride - 1
        if start + context >= count:
            return


def losses(logits: NDArray[np.float32], followers: Sequence[int]) -> NDArray[np.float64]:
    """-log probability of the token that follows each row: logits [T, V], followers [T] -> [T]."""
    result = np.empty(len(followers))
    for begin in range(0, len(followers), CHUNK):
        rows = logits[begin : begin + CHUNK].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        right = rows[np.arange(len(rows)), followers[begin : begin + CHUNK]]
        result[begin : begin + CHUNK] = np.log(np.exp(rows).sum(axis=1)) - right
    return result
