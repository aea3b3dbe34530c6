"""The next token, from logits: the chain of samplers that the request asks for, then a draw.

The draw is a function of the seed and the number of the draw alone, so that a request's text does not depend on what
else runs.
"""

import numpy as np

from edgellm.kernels.cpu.math import log_scalar
from edgellm.kernels.cpu.sampling import truncate
from edgellm.kernels.cpu.sampling.candidates import (
    ALL,
    BLOCK,
    LOWEST,
    TOKENS,
    WEIGHTS,
    block_sum,
    count_of,
    load_lanes,
    softmax_weights_in_play,
)
from edgellm.kernels.cpu.sampling.logprobs import save_logits, write_logprobs
from edgellm.kernels.cpu.sampling.penalties import apply_biases, apply_mask, penalize, penalize_continuations
from edgellm.kernels.cpu.sampling.truncate import LN_2, MU
from edgellm.kernels.ops import SAMPLE, SAMPLER, SAMPLERS, STEP, XTC_STREAM
from edgellm.kernels.simd.arithmetic import (
    choose,
    choose_i32,
    fold_max,
    lane_numbers,
    less_f32,
    splat_f32,
    splat_i32,
)
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import (
    load_f32,
    load_f32x16,
    load_i32,
    load_i64,
    store_f32,
    store_f32x16,
    store_i32x16,
    store_i64,
)

LOGITS, STRIDE, VOCABULARY = SAMPLE.logits, SAMPLE.stride, SAMPLE.vocabulary
CHAIN, TEMPERATURE, XTC_PROBABILITY = SAMPLER.chain, SAMPLER.temperature, SAMPLER.xtc_probability
TAU, ETA, NEXT_MU, FOLLOWS = SAMPLER.tau, SAMPLER.eta, SAMPLER.next_mu, SAMPLER.follows
SEED, DRAW, CHOSEN = SAMPLER.seed, SAMPLER.draw, SAMPLER.chosen
STEP_SAMPLERS, LOGIT_COUNT = STEP.samplers, STEP.logit_count
PENALTIES, DRY, TOP_K, TYPICAL_P, TOP_P, MIN_P, XTC, HEAT, MIROSTAT = range(1, len(SAMPLERS) + 1)
ZERO, ONE = np.float32(0.0), np.float32(1.0)
LARGEST_FACTOR = np.float32(1e30)  # for logits, which so stay finite at any temperature
# SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014)
GOLDEN, MIX_1, MIX_2 = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
OWN_STREAM = np.int64(XTC_STREAM)  # typed, since Numba compiles a kernel once more for a literal


@kernel
def uniform(seed: int, draw: int) -> float:
    """A number in [0, 1) with 24 random bits."""
    x = np.uint64(seed) + np.uint64(draw + 1) * GOLDEN
    x = (x ^ (x >> 30)) * MIX_1
    x = (x ^ (x >> 27)) * MIX_2
    x = x ^ (x >> 31)
    return np.float64(x >> 40) * (1.0 / 16777216.0)


@kernel
def largest(logits: int, vocabulary: int, scratch: int) -> int:
    """The first token with the largest logit; 0 where none is above -inf."""
    best, where = splat_f32(LOWEST), splat_i32(0)
    for i in range(0, vocabulary, 16):
        v = load_lanes(logits, i, vocabulary)
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
def apply_temperature(sampler: int, logits: int, vocabulary: int, kept: int) -> None:
    """Divide the logits in play by the temperature."""
    factor = min(ONE / load_f32(sampler + TEMPERATURE), LARGEST_FACTOR)
    if kept == ALL:
        for i in range(0, vocabulary, 16):
            store_f32x16(logits + i * 4, load_f32x16(logits + i * 4) * splat_f32(factor))
    else:
        for i in range(kept):
            at = logits + load_i32(load_i64(sampler + TOKENS) + i * 4) * 4
            store_f32(at, load_f32(at) * factor)


@kernel
def run_chain(sampler: int, logits: int, vocabulary: int) -> int:
    """How many tokens are left in play, or ALL."""
    kept, chain = ALL, load_i64(sampler + CHAIN)
    while chain:
        code = chain & 15
        if code == PENALTIES:
            penalize(sampler, logits)
        elif code == DRY:
            penalize_continuations(sampler, logits)
        elif code == TOP_K:
            kept = truncate.top_k(sampler, logits, vocabulary, kept)
        elif code == TYPICAL_P:
            kept = truncate.typical(sampler, logits, vocabulary, kept)
        elif code == TOP_P:
            kept = truncate.top_p(sampler, logits, vocabulary, kept)
        elif code == MIN_P:
            kept = truncate.min_p(sampler, logits, vocabulary, kept)
        elif code == XTC:
            chance = uniform(load_i64(sampler + SEED) ^ OWN_STREAM, load_i64(sampler + DRAW))
            if chance < np.float64(load_f32(sampler + XTC_PROBABILITY)):
                truncate.exclude_top_choices(sampler, logits, vocabulary, kept)
        elif code == HEAT:
            apply_temperature(sampler, logits, vocabulary, kept)
        elif code == MIROSTAT:
            kept = truncate.mirostat(sampler, logits, vocabulary, kept)
        chain >>= 4
    return kept


@kernel
def draw_place(weights: int, count: int, total: float, chance: float) -> int:
    """The first place where the sum of the weights passes `chance` of the total."""
    left, last = chance * total, 0
    for start in range(0, count, BLOCK):
        block = block_sum(weights, start, count)
        if left >= block:
            left -= block
            continue
        for i in range(start, min(start + BLOCK, count)):
            weight = np.float64(load_f32(weights + i * 4))
            left -= weight
            if left < 0.0:
                return i
            if weight > 0.0:
                last = i
    return last


@kernel
def adapt(sampler: int, probability: float) -> None:
    """Mirostat's control: the surprise of the token that was drawn, in bits, is led to tau."""
    surprise = -log_scalar(np.float32(probability)) / LN_2
    mu = load_f32(sampler + MU) - load_f32(sampler + ETA) * (surprise - load_f32(sampler + TAU))
    store_f32(sampler + NEXT_MU, mu)


@kernel
def choose_token(sampler: int, logits: int, vocabulary: int, kept: int) -> int:
    """The token with the largest logit, or one drawn from those in play."""
    weights = load_i64(sampler + WEIGHTS)
    is_greedy = load_f32(sampler + TEMPERATURE) == ZERO
    total = 0.0 if is_greedy else softmax_weights_in_play(sampler, logits, vocabulary, kept)
    if not total > 0.0:  # greedy, or no logit is a finite number
        return largest(logits, vocabulary, weights)
    chance = uniform(load_i64(sampler + SEED), load_i64(sampler + DRAW))
    place = draw_place(weights, count_of(vocabulary, kept), total, chance)
    if load_f32(sampler + TAU) > ZERO:
        adapt(sampler, np.float64(load_f32(weights + place * 4)) / total)
    return place if kept == ALL else load_i32(load_i64(sampler + TOKENS) + place * 4)


@kernel
def sample(op: int, step: int, thread: int, threads: int) -> None:
    """Choose a token for every logit row that has a sampler; rows are shared out in turn, followers stay together."""
    vocabulary, turn, previous = load_i64(op + VOCABULARY), -1, 0
    for row in range(load_i64(step + LOGIT_COUNT)):
        sampler = load_i64(load_i64(step + STEP_SAMPLERS) + row * 8)
        follows = load_i64(sampler + FOLLOWS) if sampler else 0
        turn += 1 - follows
        if sampler and turn % threads == thread:
            logits = load_i64(op + LOGITS) + row * load_i64(op + STRIDE) * 4
            if follows:
                store_i64(sampler + MU, load_i64(previous + NEXT_MU))
            save_logits(sampler, logits, vocabulary)
            apply_mask(sampler, logits, vocabulary)
            apply_biases(sampler, logits)
            kept = run_chain(sampler, logits, vocabulary)
            store_i64(sampler + CHOSEN, choose_token(sampler, logits, vocabulary, kept))
            write_logprobs(sampler, vocabulary)
        previous = sampler
