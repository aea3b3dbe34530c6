"""The tokens still in play while a token is chosen, and how many of them an amount of weight keeps.

The row of logits is the truth. ALL tokens are in play at first; a truncation leaves a list of tokens, in ascending
order. Two arrays say more about them, by place in the list (by token where ALL are in play):

    keys      float32   what tokens are compared by, mostly their logits
    weights   float32   exp(logit - largest logit), and 0 below e^-87

Weights are added in blocks: 16 lanes in float32, folded, then block after block in float64.
"""

from typing import Any

import numpy as np

from edgellm.kernels.cpu.math import exp
from edgellm.kernels.ops import SAMPLER
from edgellm.kernels.simd.arithmetic import (
    choose,
    fold_max,
    fold_sum,
    lane_numbers,
    less,
    maximum,
    splat_f32,
    splat_i32,
    zero_f32,
)
from edgellm.kernels.simd.kernel import inlined, kernel
from edgellm.kernels.simd.masks import at_least, lowest_bit, mask_bits
from edgellm.kernels.simd.memory import (
    f32_from_bits,
    load_f32,
    load_f32x16,
    load_i32,
    load_i64,
    store_f32,
    store_f32x16,
    store_i32,
)

TOKENS, KEYS, WEIGHTS = SAMPLER.tokens, SAMPLER.keys, SAMPLER.weights
# With their type, since Numba compiles a kernel once more for a literal
ALL: Any = np.int64(-1)
ANY_TOKEN: Any = np.int64(0)  # instead of the address of a list: the token of a place is its number
BLOCK = 256
LOWEST, LEAST_EXPONENT = np.float32(-np.inf), np.float32(-87.0)
LEAST_WEIGHT = np.float32(1e-38)  # below every weight that is not 0
# Floats in order as integers: their bits, and of negative ones the bits of the size turned round
LOWEST_ORDER, HIGHEST_ORDER, SIZE_BITS = -0x7F800000, 0x7F800000, 0x7FFFFFFF  # the lowest finite float; infinity


@inlined
def load_lanes(values: int, i: int, count: int) -> Any:
    """Values i..i+15, -inf after the last."""
    inside = less(lane_numbers() + splat_i32(i), splat_i32(count))
    return choose(inside, load_f32x16(values + i * 4), splat_f32(LOWEST))


@inlined
def count_of(vocabulary: int, kept: int) -> int:
    return vocabulary if kept == ALL else kept


@kernel
def gather(sampler: int, logits: int, kept: int) -> int:
    """Where the logits of the tokens in play lie side by side: in the row itself, or made the keys."""
    if kept == ALL:
        return logits
    tokens, keys = load_i64(sampler + TOKENS), load_i64(sampler + KEYS)
    for i in range(kept):
        store_f32(keys + i * 4, load_f32(logits + load_i32(tokens + i * 4) * 4))
    return keys


@kernel
def heaviest(values: int, count: int) -> Any:
    """The largest value; -inf where all are NaN."""
    best = splat_f32(LOWEST)
    for i in range(0, count, 16):
        best = maximum(load_lanes(values, i, count), best)
    return fold_max(best)


@kernel
def block_sum(weights: int, start: int, count: int) -> float:
    """Sum of the weights start..start+BLOCK-1; after the last one, weights of its vector are 0."""
    total = zero_f32()
    for i in range(start, min(start + BLOCK, count), 16):
        total = total + load_f32x16(weights + i * 4)
    return np.float64(fold_sum(total))


@kernel
def softmax_weights(values: int, count: int, weights: int) -> float:
    """Make the weights of values; returns their sum, 0 where no value is finite."""
    top = splat_f32(heaviest(values, count))
    total = 0.0
    for start in range(0, count, BLOCK):
        for i in range(start, min(start + BLOCK, count), 16):
            exponent = load_lanes(values, i, count) - top
            seen = at_least(exponent, splat_f32(LEAST_EXPONENT))
            store_f32x16(weights + i * 4, choose(seen, exp(exponent), zero_f32()))
        total += block_sum(weights, start, count)
    return total


@kernel
def softmax_weights_in_play(sampler: int, logits: int, vocabulary: int, kept: int) -> float:
    return softmax_weights(gather(sampler, logits, kept), count_of(vocabulary, kept), load_i64(sampler + WEIGHTS))


@kernel
def weigh_alike(weights: int, count: int) -> None:
    """All weights 1."""
    for i in range(0, count, 16):
        store_f32x16(weights + i * 4, splat_f32(np.float32(1.0)))


@kernel
def list_reaching(values: int, count: int, least: Any, tokens: int, out: int) -> int:
    """List the tokens whose value is at least `least`, which is above -inf; returns how many.

    The token of a place is in the list `tokens`, or with ANY_TOKEN its number.
    """
    found = 0
    for first in range(0, count, 16):
        reaching = mask_bits(at_least(load_lanes(values, first, count), splat_f32(least)))
        while reaching:
            place = first + lowest_bit(reaching)
            store_i32(out + found * 4, place if tokens == ANY_TOKEN else load_i32(tokens + place * 4))
            found += 1
            reaching &= reaching - 1
    return found


@kernel
def float_of_order(order: int) -> Any:
    return f32_from_bits(order if order >= 0 else order ^ SIZE_BITS)


@kernel
def mass(keys: int, weights: int, count: int, least: Any) -> float:
    """What those weigh whose key is at least `least`."""
    total, bound = 0.0, splat_f32(least)
    for start in range(0, count, BLOCK):
        part = zero_f32()
        for i in range(start, min(start + BLOCK, count), 16):
            reaches = at_least(load_lanes(keys, i, count), bound)
            part = part + choose(reaches, load_f32x16(weights + i * 4), zero_f32())
        total += np.float64(fold_sum(part))
    return total


@kernel
def threshold(keys: int, weights: int, count: int, amount: float) -> int:
    """The order of the largest key such that those from it up weigh the amount; of the lowest float without one."""
    low, high = LOWEST_ORDER, HIGHEST_ORDER
    while high - low > 1:
        middle = (low + high) >> 1
        if mass(keys, weights, count, float_of_order(middle)) >= amount:
            low = middle
        else:
            high = middle
    return low


@kernel
def keep(sampler: int, count: int, amount: float) -> int:
    """Keep of a list the tokens with the largest keys that weigh the amount together, of equal keys the first ones.

    Never one whose key is -inf or NaN; returns how many.
    """
    tokens, keys, weights = load_i64(sampler + TOKENS), load_i64(sampler + KEYS), load_i64(sampler + WEIGHTS)
    order = threshold(keys, weights, count, amount)
    least = float_of_order(order)
    left = amount - mass(keys, weights, count, float_of_order(order + 1))
    kept = 0
    for i in range(count):
        key = load_f32(keys + i * 4)
        if key > least or (key == least and left > 0.0):
            if key == least:
                left -= np.float64(load_f32(weights + i * 4))
            store_i32(tokens + kept * 4, load_i32(tokens + i * 4))
            kept += 1
    return kept
