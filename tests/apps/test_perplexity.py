"""Perplexity: every token is scored once, by the first window that holds it, with enough before it."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.apps.perplexity import CHUNK, losses, measure, windows

VOCABULARY = 11


def quiet(done: int, total: int) -> None:
    assert 0 <= done <= total


def logits_of(window: Sequence[int]) -> NDArray[np.float32]:
    """A fake model that sees all tokens up to each, as a causal model does, and where its window begins."""
    sums = np.cumsum([token * (place + 1) for place, token in enumerate(window)])
    return np.sin(np.outer(sums + window[0], np.arange(1, VOCABULARY + 1))).astype(np.float32) * 5


def loss_by_definition(ids: Sequence[int], token: int, context: int, stride: int) -> float:
    start = 0
    while start + context <= token:
        start += stride
    assert token - start >= context - stride or start == 0
    row = logits_of(ids[start : start + context])[token - start - 1].astype(np.float64)
    return float(math.log(sum(math.exp(value) for value in row)) - row[ids[token]])


@pytest.mark.parametrize("count", [2, 7, 8, 9, 12, 13, 50])
@pytest.mark.parametrize(("context", "stride"), [(8, 4), (8, 7), (8, 1), (9, 4), (100, 50)])
def test_equals_the_definition(count: int, context: int, stride: int) -> None:
    ids = np.random.default_rng(count).integers(0, VOCABULARY, count).tolist()
    found = measure(logits_of, ids, context=context, stride=stride, progress=quiet)
    expected = [loss_by_definition(ids, token, context, stride) for token in range(1, count)]
    assert found.tokens == count - 1
    assert found.mean_loss == pytest.approx(np.mean(expected), rel=1e-12)
    assert found.perplexity == pytest.approx(math.exp(np.mean(expected)), rel=1e-12)


def test_windows_of_the_reference() -> None:
    """8192 tokens, context 1024, stride 512, as ../shared/reference/make.py cuts them."""
    places = list(windows(8192, 1024, 512))
    assert places[:2] == [(0, 0), (512, 511)]
    assert places[-1] == (7168, 511)
    assert len(places) == 15


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary() -> None:
    found = measure(lambda ids: np.zeros((len(ids), 50), np.float32), [1] * 20, context=8, stride=4, progress=quiet)
    assert found.perplexity == pytest.approx(50)


def test_losses_of_large_logits_and_many_rows() -> None:
    logits = np.zeros((3 * CHUNK + 5, 4), np.float32)
    logits[:, 2] = 30_000
    logits[-1, 3] = 30_000
    followers = [2] * len(logits)
    found = losses(logits, followers)
    assert found[:-1].tolist() == [0.0] * (len(logits) - 1)
    assert found[-1] == pytest.approx(math.log(2))
