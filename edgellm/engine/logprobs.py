"""Log-probabilities of tokens, as the model gave them: natural logarithms, before penalties and every other sampler."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Logprobs:
    """Of one token of a text, and of the likeliest tokens at its place."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # token id and its logprob, the likeliest first, of equals the lower id


def logprobs_of(logits: NDArray[np.float32], tokens: Sequence[int], top_n: int) -> list[Logprobs]:
    """Of tokens [T] after logits [T][V], e.g. of a prompt's tokens after the first, with the `top_n` likeliest."""
    result = []
    for row, token in zip(logits, tokens, strict=True):
        shifted = row.astype(np.float64) - row.max()
        logprobs = shifted - np.log(np.exp(shifted).sum())
        top = _likeliest(row, top_n)
        result.append(Logprobs(float(logprobs[token]), tuple((int(id_), float(logprobs[id_])) for id_ in top)))
    return result


def mean_logprob(logprobs: Sequence[Logprobs | None]) -> float:
    """Of the tokens that have one; 0 where none has, since a constraint forced all of them."""
    chosen = [entry.logprob for entry in logprobs if entry is not None]
    return sum(chosen) / len(chosen) if chosen else 0.0


def _likeliest(row: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Ids of the largest logits, of equals the lower first; a whole vocabulary takes ten times as long to sort."""
    if count == 0:
        return np.empty(0, np.int64)
    least = np.partition(row, -count)[-count] if count < len(row) else row.min()
    ids = np.flatnonzero(row >= least)
    return ids[np.argsort(-row[ids], kind="stable")][:count]
