"""The softmax of a query over a chunk of positions, in powers of two: scores become weights where they lie."""

from typing import Any

import numpy as np

from edgellm.kernels.cpu.attention.blocks import PAIR_BYTES, store_pairs
from edgellm.kernels.cpu.math import exp2
from edgellm.kernels.simd.arithmetic import (
    both,
    choose,
    choose_i32,
    fold_max,
    fold_sum,
    lane_numbers,
    less,
    maximum,
    put,
    splat_f32,
    splat_i32,
    zero_f32,
    zero_tile,
)
from edgellm.kernels.simd.bfloat import from_bf16, round_to_bf16
from edgellm.kernels.simd.kernel import inlined
from edgellm.kernels.simd.memory import broadcast_f32, load_f32x16, store_f32
from edgellm.kernels.simd.vectors import f32x16

WEIGHT_BYTES = PAIR_BYTES // 2
LOWEST = np.float32(-np.inf)
AT_ONCE = 4  # vectors of scores that all count: no masks, and their chains of operations overlap
some_scores = zero_tile(f32x16, AT_ONCE)


@inlined
def seen(i: int, hidden: int, visible: int) -> Any:
    """Which of the positions i..i+15 are among hidden..visible-1."""
    lanes = lane_numbers()
    return both(less(splat_i32(hidden - 1 - i), lanes), less(lanes, splat_i32(visible - i)))


@inlined
def find_largest(scores: int, hidden: int, visible: int, width: int, result: int) -> None:
    """m of scores float32 [width], of which hidden..visible-1 count, into the result."""
    largest = splat_f32(LOWEST)
    i = 0
    while i < width:
        if hidden <= i and i + 16 * AT_ONCE <= min(visible, width):
            for v in range(AT_ONCE):
                largest = maximum(load_f32x16(scores + (i + 16 * v) * 4), largest)
            i += 16 * AT_ONCE
        else:
            score = choose(seen(i, hidden, visible), load_f32x16(scores + i * 4), splat_f32(LOWEST))
            largest = maximum(score, largest)
            i += 16
    store_f32(result, fold_max(largest))


@inlined
def softmax_weights(scores: int, hidden: int, visible: int, width: int, result: int) -> None:
    """Scores become weights, pairs [width/2]; l into the result.

    A weight is 2^(score - m), and 0 but for hidden..visible-1; l sums the weights as they were rounded.
    """
    top, total = broadcast_f32(result), zero_f32()
    i = 0
    while i < width:
        if hidden <= i and i + 16 * AT_ONCE <= min(visible, width):
            x = some_scores()
            for v in range(AT_ONCE):
                x = put(x, v, load_f32x16(scores + (i + 16 * v) * 4))
            for v in range(AT_ONCE):
                bits = round_to_bf16(exp2(x[v] - top))
                store_pairs(scores + (i + 16 * v) * WEIGHT_BYTES, bits)
                total = total + from_bf16(bits)
            i += 16 * AT_ONCE
        else:
            bits = round_to_bf16(exp2(load_f32x16(scores + i * 4) - top))
            bits = choose_i32(seen(i, hidden, visible), bits, splat_i32(0))
            store_pairs(scores + i * WEIGHT_BYTES, bits)
            total = total + from_bf16(bits)
            i += 16
    store_f32(result + 4, fold_sum(total))
