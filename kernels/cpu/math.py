"""Our own exp, and what is built on it: the same bits on every machine, unlike libm's."""

from typing import Any

import numpy as np

from edgellm.kernels.simd.arithmetic import (
    bits_at,
    choose,
    choose_i32,
    f32_from_i32,
    f32_from_lane_bits,
    fma,
    fold_max,
    lane_bits,
    less_f32,
    maximum,
    minimum,
    shift_left,
    splat_f32,
    splat_i32,
    zero_f32,
)
from edgellm.kernels.simd.kernel import inlined, kernel

LIMIT = np.float32(87.0)  # exp stays a normal float inside
LOG2_E = np.float32(1.4426950408889634)
MINUS_LN2_HIGH = np.float32(-0.693359375)  # exact in 10 bits, so that n * high is exact
MINUS_LN2_LOW = np.float32(2.12194440e-4)
# Minimax polynomial of exp on [-ln2/2, ln2/2]; coefficients of Cephes' expf (S. Moshier, netlib).
C6, C5, C4, C3, C2 = (
    np.float32(c) for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1)
)
# 2^r on [-1/2, 1/2], fitted for the least relative error
D5, D4, D3, D2, D1 = (np.float32(c) for c in (0.00132764713, 0.00967554189, 0.0555071309, 0.240221202, 0.693146944))
# log(1 + f) = f - f^2/2 + f^3 * polynomial, for 1 + f in [sqrt(1/2), sqrt(2)]; coefficients of Cephes' logf
L8, L7, L6, L5, L4, L3, L2, L1, L0 = (
    np.float32(c)
    for c in (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
              -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)
)  # fmt: skip
ROOT_2 = np.float32(1.4142135623730951)
LEAST_POWER = np.float32(-59.5)
HALF, ONE = np.float32(0.5), np.float32(1.0)
# Adding 1.5 * 2^23 rounds to the nearest (even) integer and leaves it in the low bits, on any machine.
ROUNDER = np.float32(12582912.0)
ROUNDER_BITS = 0x4B400000
ONE_BITS = 0x3F800000


@kernel
def exp(x: Any) -> Any:
    """e^x of 16 lanes, x clamped to -87..87; relative error below 2e-7."""
    x = minimum(maximum(x, splat_f32(-LIMIT)), splat_f32(LIMIT))
    rounded = fma(x, splat_f32(LOG2_E), splat_f32(ROUNDER))
    n = rounded - splat_f32(ROUNDER)
    r = fma(n, splat_f32(MINUS_LN2_LOW), fma(n, splat_f32(MINUS_LN2_HIGH), x))
    p = fma(splat_f32(C6), r, splat_f32(C5))
    p = fma(p, r, splat_f32(C4))
    p = fma(p, r, splat_f32(C3))
    p = fma(p, r, splat_f32(C2))
    p = fma(p, r, splat_f32(HALF))
    p = fma(p, r * r, r) + splat_f32(ONE)
    power = shift_left(lane_bits(rounded) - splat_i32(ROUNDER_BITS), 23)
    return f32_from_lane_bits(lane_bits(p) + power)


@inlined
def exp2(x: Any) -> Any:
    """2^x of 16 lanes at or below 0, x clamped to at least -59.5; relative error below 3e-7.

    Clamped, so that no result is so small that rounding to bf16 makes it zero, or a product with it is denormal.
    """
    x = maximum(x, splat_f32(LEAST_POWER))
    rounded = x + splat_f32(ROUNDER)
    r = x - (rounded - splat_f32(ROUNDER))
    p = fma(splat_f32(D5), r, splat_f32(D4))
    p = fma(p, r, splat_f32(D3))
    p = fma(p, r, splat_f32(D2))
    p = fma(p, r, splat_f32(D1))
    p = fma(p, r, splat_f32(ONE))
    return f32_from_lane_bits(lane_bits(p) + shift_left(lane_bits(rounded), 23))


@kernel
def log(x: Any) -> Any:
    """Natural logarithm of 16 lanes, positive and normal; error below 1e-7 of the result, or of 1 where it is less."""
    bits = lane_bits(x)
    exponent = bits_at(bits, 23, 8) - splat_i32(127)
    m = f32_from_lane_bits(bits_at(bits, 0, 23) + splat_i32(ONE_BITS))
    large = less_f32(splat_f32(ROOT_2), m)
    m = choose(large, m * splat_f32(HALF), m)
    e = f32_from_i32(choose_i32(large, exponent + splat_i32(1), exponent))
    f = m - splat_f32(ONE)
    square = f * f
    p = fma(splat_f32(L8), f, splat_f32(L7))
    p = fma(p, f, splat_f32(L6))
    p = fma(p, f, splat_f32(L5))
    p = fma(p, f, splat_f32(L4))
    p = fma(p, f, splat_f32(L3))
    p = fma(p, f, splat_f32(L2))
    p = fma(p, f, splat_f32(L1))
    p = fma(p, f, splat_f32(L0))
    p = p * f * square - e * splat_f32(MINUS_LN2_LOW) - square * splat_f32(HALF)
    return f + p - e * splat_f32(MINUS_LN2_HIGH)


@kernel
def exp_scalar(x: Any) -> Any:
    return fold_max(exp(splat_f32(x)))


@kernel
def log_scalar(x: Any) -> Any:
    return fold_max(log(splat_f32(x)))


@kernel
def silu(x: Any) -> Any:
    return x / (splat_f32(ONE) + exp(zero_f32() - x))


@kernel
def round_to_i32(x: Any) -> Any:
    """Nearest integer, ties to even, of lanes below 2^22 in size."""
    return lane_bits(x + splat_f32(ROUNDER)) - splat_i32(ROUNDER_BITS)
