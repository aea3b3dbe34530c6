"""The next token, from logits: penalties and biases, then temperature, top-k, top-p, min-p, then a draw.

The draw is a function of the seed and the number of the draw alone, so that a request's text does not depend on what
else runs.
"""

from typing import Any

import numpy as np

from edgellm.kernels.cpu.math import exp
from edgellm.kernels.ops import SAMPLE, SAMPLER, STEP
from edgellm.kernels.simd.arithmetic import (
    choose,
    choose_i32,
    fold_max,
    lane_numbers,
    less,
    less_f32,
    splat_f32,
    splat_i32,
    zero_f32,
)
from edgellm.kernels.simd.kernel import inlined, kernel
from edgellm.kernels.simd.memory import (
    f32_from_bits,
    load_f32,
    load_f32x16,
    load_i32,
    load_i64,
    store_f32,
    store_f32x16,
    store_i32,
    store_i32x16,
    store_i64,
)

LOGITS, STRIDE, VOCABULARY = SAMPLE.logits, SAMPLE.stride, SAMPLE.vocabulary
TEMPERATURE, TOP_K, TOP_P, MIN_P = SAMPLER.temperature, SAMPLER.top_k, SAMPLER.top_p, SAMPLER.min_p
REPETITION, PRESENCE, FREQUENCY = SAMPLER.repetition, SAMPLER.presence, SAMPLER.frequency
SEED, DRAW, HISTORY, HISTORY_COUNT = SAMPLER.seed, SAMPLER.draw, SAMPLER.history, SAMPLER.history_count
BIAS, BIAS_COUNT, SCRATCH, CHOSEN = SAMPLER.bias, SAMPLER.bias_count, SAMPLER.scratch, SAMPLER.chosen
SAMPLERS, LOGIT_COUNT = STEP.samplers, STEP.logit_count
LOWEST, ZERO, ONE = np.float32(-np.inf), np.float32(0.0), np.float32(1.0)
# SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014), as signed words
GOLDEN, MIX_1, MIX_2 = (np.int64(c - (1 << 64)) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@inlined
def float_of(sampler: int, word: int) -> float:
    return f32_from_bits(load_i64(sampler + word))


@kernel
def shift_right(x: Any, bits: int) -> Any:
    """Without the sign."""
    return (x >> bits) & ((np.int64(1) << (64 - bits)) - 1)


@kernel
def uniform(seed: int, draw: int) -> float:
    """A number in [0, 1) with 24 random bits."""
    x = seed + (draw + 1) * GOLDEN
    x = (x ^ shift_right(x, 30)) * MIX_1
    x = (x ^ shift_right(x, 27)) * MIX_2
    x ^= shift_right(x, 31)
    return np.float64(shift_right(x, 40)) * (1.0 / 16777216.0)


@kernel
def adjust(sampler: int, logits: int) -> None:
    """Penalties on tokens that occurred, history int32 [n][2]: token, times generated (0: in the prompt only)."""
    repetition, presence = float_of(sampler, REPETITION), float_of(sampler, PRESENCE)
    frequency = float_of(sampler, FREQUENCY)
    for i in range(load_i64(sampler + HISTORY_COUNT)):
        entry = load_i64(sampler + HISTORY) + i * 8
        at, times = logits + load_i32(entry) * 4, load_i32(entry + 4)
        value = load_f32(at)
        value = value / repetition if value > ZERO else value * repetition
        if times > 0:
            value = value - presence - frequency * np.float32(times)
        store_f32(at, value)
    for i in range(load_i64(sampler + BIAS_COUNT)):
        entry = load_i64(sampler + BIAS) + i * 8
        at = logits + load_i32(entry) * 4
        store_f32(at, load_f32(at) + load_f32(entry + 4))


@inlined
def valid_logits(logits: int, i: int, vocabulary: int) -> Any:
    """Logits i..i+15, -inf behind the vocabulary."""
    inside = less(lane_numbers() + splat_i32(i), splat_i32(vocabulary))
    return choose(inside, load_f32x16(logits + i * 4), splat_f32(LOWEST))


@kernel
def largest(logits: int, vocabulary: int, scratch: int) -> int:
    """The first token with the largest logit; 0 where all are NaN."""
    best, where = splat_f32(LOWEST), splat_i32(0)
    for i in range(0, vocabulary, 16):
        v = valid_logits(logits, i, vocabulary)
        better = less_f32(best, v)
        best = choose(better, v, best)
        where = choose_i32(better, lane_numbers() + splat_i32(i), where)
    top = fold_max(best)
    store_f32x16(scratch, best)
    store_i32x16(scratch + 64, where)
    first = vocabulary
    for lane in range(16):
        if load_f32(scratch + lane * 4) == top:
            first = min(first, load_i32(scratch + 64 + lane * 4))
    return first if first < vocabulary else 0


@kernel
def weigh(logits: int, vocabulary: int, top: Any, inverse_temperature: Any, weights: int) -> float:
    """weights float32 [V] = exp((logit - top) / temperature); returns their sum."""
    for i in range(0, vocabulary, 16):
        scaled = (valid_logits(logits, i, vocabulary) - splat_f32(top)) * splat_f32(inverse_temperature)
        seen = less(lane_numbers() + splat_i32(i), splat_i32(vocabulary))
        store_f32x16(weights + i * 4, choose(seen, exp(scaled), zero_f32()))
    total = 0.0
    for i in range(vocabulary):
        total += np.float64(load_f32(weights + i * 4))
    return total


@inlined
def before(weights: int, a: int, b: int) -> bool:
    """Whether token a comes before b: the heavier first, of equals the lower number."""
    wa, wb = load_f32(weights + a * 4), load_f32(weights + b * 4)
    return wa > wb or (wa == wb and a < b)


@kernel
def sift(weights: int, heap: int, at: int, size: int) -> None:
    """Restore the heap int32 [size] below `at`."""
    token = load_i32(heap + at * 4)
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and before(weights, load_i32(heap + child * 4 + 4), load_i32(heap + child * 4)):
            child += 1
        below = load_i32(heap + child * 4)
        if not before(weights, below, token):
            break
        store_i32(heap + at * 4, below)
        at = child
    store_i32(heap + at * 4, token)


@kernel
def take_first(weights: int, heap: int, size: int) -> int:
    """Move the heaviest token of the heap behind its new end; returns it."""
    token, last = load_i32(heap), load_i32(heap + (size - 1) * 4)
    store_i32(heap, last)
    store_i32(heap + (size - 1) * 4, token)
    sift(weights, heap, 0, size - 1)
    return token


@kernel
def truncate(sampler: int, weights: int, heap: int, vocabulary: int, total: float) -> int:
    """Tokens kept by top-k, top-p and min-p, heaviest last in heap int32 [V]; returns how many."""
    top_k, top_p = load_i64(sampler + TOP_K), np.float64(float_of(sampler, TOP_P))
    for i in range(vocabulary):
        store_i32(heap + i * 4, i)
    for i in range(vocabulary // 2 - 1, -1, -1):
        sift(weights, heap, i, vocabulary)
    limit = min(top_k, vocabulary) if top_k > 0 else vocabulary
    kept, mass = 0, 0.0
    while kept < limit and (top_k > 0 or mass < top_p * total):
        mass += np.float64(load_f32(weights + take_first(weights, heap, vocabulary - kept) * 4))
        kept += 1
    end = heap + vocabulary * 4
    if top_k > 0:
        within, cut = 0.0, 0
        while cut < kept and within < top_p * mass:
            cut += 1
            within += np.float64(load_f32(weights + load_i32(end - cut * 4) * 4))
        kept = max(cut, 1)
    least = float_of(sampler, MIN_P) * load_f32(weights + load_i32(end - 4) * 4)
    while kept > 1 and load_f32(weights + load_i32(end - kept * 4) * 4) < least:
        kept -= 1
    return kept


@kernel
def draw_token(sampler: int, logits: int, vocabulary: int) -> int:
    weights = load_i64(sampler + SCRATCH)
    heap = weights + (vocabulary + 16) * 4
    best = largest(logits, vocabulary, weights)
    temperature = float_of(sampler, TEMPERATURE)
    if temperature == ZERO:
        return best
    total = weigh(logits, vocabulary, load_f32(logits + best * 4), ONE / temperature, weights)
    chance = uniform(load_i64(sampler + SEED), load_i64(sampler + DRAW))
    if load_i64(sampler + TOP_K) == 0 and float_of(sampler, TOP_P) == ONE and float_of(sampler, MIN_P) == ZERO:
        left = chance * total
        for token in range(vocabulary):
            left -= np.float64(load_f32(weights + token * 4))
            if left < 0.0:
                return token
        return best
    kept = truncate(sampler, weights, heap, vocabulary, total)
    end, mass = heap + vocabulary * 4, 0.0
    for i in range(1, kept + 1):
        mass += np.float64(load_f32(weights + load_i32(end - i * 4) * 4))
    left = chance * mass
    for i in range(1, kept + 1):
        left -= np.float64(load_f32(weights + load_i32(end - i * 4) * 4))
        if left < 0.0:
            return load_i32(end - i * 4)
    return best


@kernel
def sample(op: int, step: int, thread: int, threads: int) -> None:
    """Choose a token for every logit row that has a sampler; rows are shared out in turn."""
    vocabulary = load_i64(op + VOCABULARY)
    for row in range(thread, load_i64(step + LOGIT_COUNT), threads):
        sampler = load_i64(load_i64(step + SAMPLERS) + row * 8)
        if sampler:
            logits = load_i64(op + LOGITS) + row * load_i64(op + STRIDE) * 4
            adjust(sampler, logits)
            store_i64(sampler + CHOSEN, draw_token(sampler, logits, vocabulary))
