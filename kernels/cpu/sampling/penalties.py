"""What changes the logits of single tokens: a mask, biases, penalties on tokens that occurred, DRY."""

import numpy as np

from edgellm.kernels.cpu.sampling.candidates import LOWEST
from edgellm.kernels.ops import DRY_LONGEST, SAMPLER
from edgellm.kernels.simd.arithmetic import choose, splat_f32
from edgellm.kernels.simd.kernel import inlined, kernel
from edgellm.kernels.simd.masks import mask_from_bits
from edgellm.kernels.simd.memory import (
    load_f32,
    load_f32x16,
    load_i32,
    load_i64,
    store_f32,
    store_f32x16,
    store_i32,
)

MASK, BIAS, BIAS_COUNT = SAMPLER.mask, SAMPLER.bias, SAMPLER.bias_count
TEXT, TEXT_COUNT, PROMPT_COUNT, COUNTS = SAMPLER.text, SAMPLER.text_count, SAMPLER.prompt_count, SAMPLER.counts
REPETITION, PRESENCE, FREQUENCY = SAMPLER.repetition, SAMPLER.presence, SAMPLER.frequency
PENALTY_LAST_N, DRY_LAST_N = SAMPLER.penalty_last_n, SAMPLER.dry_last_n
DRY_MULTIPLIER, DRY_BASE = SAMPLER.dry_multiplier, SAMPLER.dry_base
DRY_ALLOWED_LENGTH, BREAKERS = SAMPLER.dry_allowed_length, SAMPLER.breakers
ZERO = np.float32(0.0)
MOST = np.float32(1e30)  # that is taken off a logit, which so stays finite


@kernel
def apply_mask(sampler: int, logits: int, vocabulary: int) -> None:
    """Tokens that the mask does not allow."""
    mask = load_i64(sampler + MASK)
    if mask == 0:
        return
    for word in range((vocabulary + 31) // 32):
        bits = load_i32(mask + word * 4)
        if bits != -1:
            for half in range(2):
                at = logits + (word * 2 + half) * 64
                allowed = mask_from_bits(bits >> (half * 16))
                store_f32x16(at, choose(allowed, load_f32x16(at), splat_f32(LOWEST)))


@kernel
def apply_biases(sampler: int, logits: int) -> None:
    for i in range(load_i64(sampler + BIAS_COUNT)):
        entry = load_i64(sampler + BIAS) + i * 8
        at = logits + load_i32(entry) * 4
        store_f32(at, load_f32(at) + load_f32(entry + 4))


@kernel
def penalize(sampler: int, logits: int) -> None:
    """Tokens among the last n; repetition (Keskar et al., arXiv 1909.05858) takes all, the others those of the answer.

    counts: 1 for a token that occurs, and 2 for each time that it does in the answer.
    """
    text, end, counts = load_i64(sampler + TEXT), load_i64(sampler + TEXT_COUNT), load_i64(sampler + COUNTS)
    first, prompt = max(0, end - load_i64(sampler + PENALTY_LAST_N)), load_i64(sampler + PROMPT_COUNT)
    for i in range(first, end):
        at = counts + load_i32(text + i * 4) * 4
        store_i32(at, (load_i32(at) | 1) + (2 if i >= prompt else 0))
    repetition, presence = load_f32(sampler + REPETITION), load_f32(sampler + PRESENCE)
    frequency = load_f32(sampler + FREQUENCY)
    for i in range(first, end):
        token = load_i32(text + i * 4)
        count = load_i32(counts + token * 4)
        if count:
            store_i32(counts + token * 4, 0)
            value = load_f32(logits + token * 4)
            value = value / repetition if value > ZERO else value * repetition
            if count > 1:
                value = value - presence - frequency * np.float32(count >> 1)
            store_f32(logits + token * 4, value)


@inlined
def breaks(sampler: int, token: int) -> int:
    return (load_i32(load_i64(sampler + BREAKERS) + (token >> 5) * 4) >> (token & 31)) & 1


@kernel
def unbroken(sampler: int, text: int, first: int, end: int) -> int:
    """How many tokens of the text's end hold no breaker, up to DRY_LONGEST."""
    count = 0
    while count < min(end - first, DRY_LONGEST) and not breaks(sampler, load_i32(text + (end - 1 - count) * 4)):
        count += 1
    return count


@kernel
def penalize_continuations(sampler: int, logits: int) -> None:
    """DRY, "don't repeat yourself" (P. E. Weidmann, text-generation-webui, pull request 5677).

    Where the last n tokens were in the text before, the token that came after them loses
    multiplier * base^(n - allowed length). counts: the largest n of a token.
    """
    text, end, counts = load_i64(sampler + TEXT), load_i64(sampler + TEXT_COUNT), load_i64(sampler + COUNTS)
    first, allowed = max(0, end - load_i64(sampler + DRY_LAST_N)), load_i64(sampler + DRY_ALLOWED_LENGTH)
    longest = unbroken(sampler, text, first, end)
    if longest < allowed:
        return
    for i in range(first, end - 1):
        length = 0
        while length < min(longest, i + 1 - first) and (
            load_i32(text + (i - length) * 4) == load_i32(text + (end - 1 - length) * 4)
        ):
            length += 1
        if length >= allowed:
            at = counts + load_i32(text + (i + 1) * 4) * 4
            store_i32(at, max(load_i32(at), length))
    base = np.float64(load_f32(sampler + DRY_BASE))
    for i in range(first + 1, end):
        token = load_i32(text + i * 4)
        length = load_i32(counts + token * 4)
        if length:
            store_i32(counts + token * 4, 0)
            if not breaks(sampler, token):
                penalty = np.float64(load_f32(sampler + DRY_MULTIPLIER))
                for _ in range(length - allowed):
                    penalty *= base
                at = logits + token * 4
                store_f32(at, load_f32(at) - min(np.float32(penalty), MOST))
