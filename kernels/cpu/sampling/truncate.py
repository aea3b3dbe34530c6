"""Truncations: each takes the tokens in play, as candidates.py describes them, and leaves fewer.

    top-k      those of the k largest logits
    typical    those of a surprise nearest to the entropy, together as likely as p (Meister et al., arXiv 2202.00666)
    top-p      the likeliest, together as likely as p (Holtzman et al., arXiv 1904.09751)
    min-p      those at least p times as likely as the likeliest (Nguyen et al., arXiv 2407.01082)
    mirostat   those with a surprise of at most mu bits (Basu et al., arXiv 2007.14966)
    XTC        all but those that reach a threshold, of which the least likely stays

Over a whole vocabulary, top-k, typical and top-p first drop what they cannot keep, which leaves some hundred tokens.
"""

from typing import Any

import numpy as np

from edgellm.kernels.cpu.math import exp_scalar
from edgellm.kernels.cpu.sampling.candidates import (
    ALL,
    ANY_TOKEN,
    BLOCK,
    KEYS,
    LEAST_WEIGHT,
    LOWEST,
    TOKENS,
    WEIGHTS,
    count_of,
    float_of_order,
    gather,
    heaviest,
    keep,
    list_reaching,
    load_lanes,
    mass,
    softmax_weights_in_play,
    threshold,
    weigh_alike,
)
from edgellm.kernels.ops import SAMPLER
from edgellm.kernels.simd.arithmetic import absolute, choose, fold_sum, maximum, splat_f32, zero_f32
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.masks import at_least
from edgellm.kernels.simd.memory import (
    load_f32,
    load_f32x16,
    load_i32,
    load_i64,
    store_f32,
    store_f32x16,
)

TOP_K, TYPICAL_P, TOP_P, MIN_P = SAMPLER.top_k, SAMPLER.typical_p, SAMPLER.top_p, SAMPLER.min_p
XTC_THRESHOLD, MU = SAMPLER.xtc_threshold, SAMPLER.mu
LOWEST_FINITE, LN_2 = np.float32(-3.4028234663852886e38), np.float32(0.6931471805599453)
ONE, TWO, SIXTEENTH = np.float32(1.0), np.float32(2.0), np.float32(1 / 16)


@kernel
def contenders(sampler: int, logits: int, vocabulary: int, k: int) -> int:
    """List, of all tokens, the k with the largest logits, and some that happen to reach the bound; returns how many.

    The bound: each lane of each block has a largest logit, of these the k-th.
    """
    maxima, weights = load_i64(sampler + KEYS), load_i64(sampler + WEIGHTS)
    for start in range(0, vocabulary, BLOCK):
        best = splat_f32(LOWEST)
        for i in range(start, min(start + BLOCK, vocabulary), 16):
            best = maximum(load_lanes(logits, i, vocabulary), best)
        store_f32x16(maxima + start // BLOCK * 64, best)
    count = (vocabulary + BLOCK - 1) // BLOCK * 16
    weigh_alike(weights, count)
    least = float_of_order(threshold(maxima, weights, count, np.float64(k)))
    return list_reaching(logits, vocabulary, least, ANY_TOKEN, load_i64(sampler + TOKENS))


@kernel
def top_k(sampler: int, logits: int, vocabulary: int, kept: int) -> int:
    k = load_i64(sampler + TOP_K)
    if kept == ALL:
        kept = contenders(sampler, logits, vocabulary, k)
    if kept <= k:
        return kept
    gather(sampler, logits, kept)
    weigh_alike(load_i64(sampler + WEIGHTS), kept)
    return keep(sampler, kept, np.float64(k))


@kernel
def keep_heavy(sampler: int, vocabulary: int, kept: int, least: Any) -> int:
    """Keep the tokens in play whose weight is not 0 and reaches `least`; returns how many."""
    tokens, weights = load_i64(sampler + TOKENS), load_i64(sampler + WEIGHTS)
    listed = ANY_TOKEN if kept == ALL else tokens
    return list_reaching(weights, count_of(vocabulary, kept), max(least, LEAST_WEIGHT), listed, tokens)


@kernel
def shorten(sampler: int, logits: int, vocabulary: int, least: Any) -> int:
    """From ALL tokens to a list of those whose weight reaches `least`, with keys and weights; returns how many."""
    tokens, weights = load_i64(sampler + TOKENS), load_i64(sampler + WEIGHTS)
    kept = keep_heavy(sampler, vocabulary, ALL, least)
    for i in range(kept):
        store_f32(weights + i * 4, load_f32(weights + load_i32(tokens + i * 4) * 4))
    gather(sampler, logits, kept)
    return kept


@kernel
def enough(sampler: int, vocabulary: int, amount: float) -> Any:
    """A weight that those of ALL tokens reach which weigh the amount together: 1 / 16, or that times 1 / 16, ..."""
    weights, least = load_i64(sampler + WEIGHTS), SIXTEENTH
    while least > LEAST_WEIGHT and mass(weights, weights, vocabulary, least) < amount:
        least *= SIXTEENTH
    return least


@kernel
def top_p(sampler: int, logits: int, vocabulary: int, kept: int) -> int:
    total = softmax_weights_in_play(sampler, logits, vocabulary, kept)
    amount = np.float64(load_f32(sampler + TOP_P)) * total
    if kept == ALL:
        kept = shorten(sampler, logits, vocabulary, enough(sampler, vocabulary, amount))
    return keep(sampler, kept, amount)


@kernel
def mean_logit(values: int, weights: int, count: int, total: float) -> Any:
    """Of the distribution that the weights are."""
    mean = 0.0
    for start in range(0, count, BLOCK):
        part = zero_f32()
        for i in range(start, min(start + BLOCK, count), 16):
            v = load_lanes(values, i, count)
            part = part + choose(at_least(v, splat_f32(LOWEST_FINITE)), v * load_f32x16(weights + i * 4), zero_f32())
        mean += np.float64(fold_sum(part))
    return np.float32(mean / total)


@kernel
def typical(sampler: int, logits: int, vocabulary: int, kept: int) -> int:
    """How far a surprise is from the entropy is how far the logit is from the mean logit."""
    keys, values = load_i64(sampler + KEYS), gather(sampler, logits, kept)
    total = softmax_weights_in_play(sampler, logits, vocabulary, kept)
    amount = np.float64(load_f32(sampler + TYPICAL_P)) * total
    mean = mean_logit(values, load_i64(sampler + WEIGHTS), count_of(vocabulary, kept), total)
    if kept == ALL:
        # Tokens farther below the mean than the likeliest is above it come after all others
        mirrored = exp_scalar(TWO * (mean - heaviest(values, vocabulary)))
        kept = shorten(sampler, logits, vocabulary, min(enough(sampler, vocabulary, amount), mirrored))
    for i in range(0, kept, 16):
        store_f32x16(keys + i * 4, zero_f32() - absolute(load_f32x16(keys + i * 4) - splat_f32(mean)))
    return keep(sampler, kept, amount)


@kernel
def min_p(sampler: int, logits: int, vocabulary: int, kept: int) -> int:
    softmax_weights_in_play(sampler, logits, vocabulary, kept)
    return keep_heavy(sampler, vocabulary, kept, load_f32(sampler + MIN_P))


@kernel
def mirostat(sampler: int, logits: int, vocabulary: int, kept: int) -> int:
    """At least the likeliest, whose weight is 1, is kept."""
    total = softmax_weights_in_play(sampler, logits, vocabulary, kept)
    least = np.float32(total) * exp_scalar(-load_f32(sampler + MU) * LN_2)
    return keep_heavy(sampler, vocabulary, kept, min(least, ONE))


@kernel
def exclude_top_choices(sampler: int, logits: int, vocabulary: int, kept: int) -> None:
    """Of the tokens that reach the threshold, all but the least likely, of equals the last, get a logit of -inf."""
    total = softmax_weights_in_play(sampler, logits, vocabulary, kept)
    least = max(np.float32(np.float64(load_f32(sampler + XTC_THRESHOLD)) * total), LEAST_WEIGHT)
    found = load_i64(sampler + KEYS)  # not needed after softmax_weights
    tokens = ANY_TOKEN if kept == ALL else load_i64(sampler + TOKENS)
    last = -1
    for i in range(list_reaching(load_i64(sampler + WEIGHTS), count_of(vocabulary, kept), least, tokens, found)):
        token = load_i32(found + i * 4)
        if last < 0:
            last = token
        elif load_f32(logits + token * 4) <= load_f32(logits + last * 4):
            store_f32(logits + last * 4, LOWEST)
            last = token
        else:
            store_f32(logits + token * 4, LOWEST)
