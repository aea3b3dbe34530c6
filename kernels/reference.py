"""Every operation of ops.py in plain NumPy: the oracle that kernels are tested against.

Same names, natural layouts, float64 sums where the order of additions is the kernels' own business. Rounding that is
part of an operation's meaning (INT8 activations, bf16 keys and values) is done here as the kernels do it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.ops import CHUNK, DRY_LONGEST
from edgellm.kernels.panels import BLOCK

Array = NDArray[Any]


def quantize(x: Array) -> tuple[Array, Array]:
    """Rows float [R][C] -> codes int32 [R][C] and scales float32 [R][C/32].

    Codes are in -127..127, but one in a block, more than twice the others, may be up to 127 * 128 (cpu/quantize.py).
    """
    blocks = np.asarray(x, np.float32).reshape(*x.shape[:-1], -1, BLOCK)
    second, largest = (np.sort(np.abs(blocks), axis=-1)[..., at : at + 1 or None] for at in (-2, -1))
    fine = np.maximum(second / np.float32(127), largest / np.float32(127 * 128))
    scales = np.where(largest > 2 * second, fine, largest / np.float32(127))
    codes = np.rint(np.divide(blocks, scales, out=np.zeros_like(blocks), where=scales > 0)).astype(np.int32)
    return codes.reshape(x.shape), scales[..., 0]


def dequantize(codes: Array, scales: Array) -> Any:
    """What quantized rows stand for, float64 [R][C]."""
    return codes * np.repeat(scales.astype(np.float64), BLOCK, axis=-1)


def embed(embedding: Array, tokens: Array) -> Any:
    """embedding [V][D], tokens [R] -> residual float32 [R][D]."""
    return embedding[tokens].astype(np.float32)


def norm(x: Array, weight: Array, epsilon: float) -> Any:
    """RMSNorm (Zhang and Sennrich, arXiv 1910.07467): [R][D] -> [R][D]."""
    x = np.asarray(x, np.float64)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def matmul(x: Array, weight: Array) -> Any:
    """Rows [R][C], quantized, times weight [N][C] -> [R][N]."""
    return dequantize(*quantize(x)) @ np.asarray(weight, np.float64).T


def rope(x: Array, positions: Array, frequencies: Array) -> Any:
    """Rotate entries 2i, 2i+1 of heads [R][H][E] by position * frequencies[i]."""
    angles = positions[:, None, None] * np.asarray(frequencies, np.float64)
    size = 2 * angles.shape[-1]
    result = np.array(x, np.float64)
    even = np.array(result[..., 0:size:2])
    odd = np.array(result[..., 1:size:2])
    result[..., 0:size:2] = even * np.cos(angles) - odd * np.sin(angles)
    result[..., 1:size:2] = even * np.sin(angles) + odd * np.cos(angles)
    return result


def bf16(x: Array) -> Any:
    """Rounded to bf16, ties to even, as float32; below 2^-60 it is zero."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return np.where(np.abs(x) < 2.0**-60, np.float32(0), rounded)


def hadamard(x: Array) -> Any:
    """Every 32 entries of heads [..][E] times the Hadamard matrix / sqrt(32), which keeps dot products."""
    matrix = np.ones((1, 1))
    while len(matrix) < BLOCK:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (np.asarray(x, np.float64).reshape(*x.shape[:-1], -1, BLOCK) @ matrix / np.sqrt(BLOCK)).reshape(x.shape)


def quantize_kv(x: Array) -> tuple[Array, Array]:
    """Keys or values [..][E] -> codes int32 [..][E] in -127..127, scales float32 [..][E/32], bf16 numbers."""
    blocks = np.asarray(x, np.float32).reshape(*x.shape[:-1], -1, BLOCK)
    scales = bf16(np.abs(blocks).max(-1) / np.float32(127))
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    return np.rint(blocks * inverse[..., None]).astype(np.int32).reshape(x.shape), scales


def attend(
    q: Array, keys: Array, values: Array, first_position: int, *, dtype: str = "bf16", window: int | None = None
) -> Any:
    """Causal attention with grouped heads: queries and weights in bf16, keys and values in bf16 or INT8.

    q [R][H][E], scaled (by log2(e) as well), at positions first_position..; keys and values [S][K][E] of positions
    0..S-1 -> [R][H][E]; for INT8, q and keys are `hadamard`'s. With a window, a row sees that many positions, its own
    the last.
    """
    rows, heads, _ = q.shape
    q = bf16(q).astype(np.float64)
    keys, values = (np.repeat(a, heads // a.shape[1], axis=1) for a in (keys, values))
    if dtype == "int8":
        (keys, scales) = quantize_kv(keys)
        (values, value_scales) = quantize_kv(values)
        keys = dequantize(keys, scales)
    else:
        keys, values = (bf16(a).astype(np.float64) for a in (keys, values))
        value_scales = np.ones((*values.shape[:-1], values.shape[-1] // BLOCK), np.float32)
    scores = np.einsum("rhe,she->rhs", q, keys)
    age = first_position + np.arange(rows)[:, None] - np.arange(len(keys))
    visible = (age >= 0) & (age < (window or len(keys)))
    scores = np.where(visible[:, None, :], scores, -np.inf)
    top = scores.max(-1)
    outputs = np.zeros(q.shape)
    sums = np.zeros((rows, heads))
    for start in range(0, len(keys), CHUNK):
        part = scores[:, :, start : start + CHUNK]
        here = slice(start, start + CHUNK)
        largest = np.maximum(part.max(-1), -1e30)  # a chunk of which a row sees nothing weighs nothing
        weights = bf16(np.exp2(np.maximum(part - largest[..., None], -59.5)))
        weights = np.where(visible[:, None, here], weights, np.float32(0))
        share = np.exp2(largest - top)
        sums += share * weights.astype(np.float64).sum(-1)
        scaled = bf16(weights[..., None] * value_scales[here].transpose(1, 0, 2)[None]).astype(np.float64)
        blocks = values[here].astype(np.float64).reshape(*values[here].shape[:2], -1, BLOCK)
        outputs += share[..., None] * np.einsum("rhsb,shbe->rhbe", scaled, blocks).reshape(outputs.shape)
    return outputs / sums[..., None]


def silu(x: Array) -> Any:
    x = np.asarray(x, np.float64)
    return x / (1 + np.exp(-x))


# Choosing a token: each sampler takes logits [V] and gives logits, with -inf for tokens that are out of play.


def probabilities(logits: Array) -> Any:
    weights = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return weights / weights.sum()


def _only(logits: Array, kept: Array) -> Any:
    result = np.full(len(logits), -np.inf)
    result[kept] = np.asarray(logits, np.float64)[kept]
    return result


def _first_reaching(logits: Array, order: Array, p: float) -> Any:
    """The first tokens in the order that are together at least as likely as p."""
    reached = np.cumsum(probabilities(logits)[order])
    return _only(logits, order[: int(np.searchsorted(reached, p)) + 1])


def top_k(logits: Array, k: int) -> Any:
    return _only(logits, np.argsort(-logits, kind="stable")[:k])


def top_p(logits: Array, p: float) -> Any:
    return _first_reaching(logits, np.argsort(-logits, kind="stable"), p)


def typical_p(logits: Array, p: float) -> Any:
    likely = probabilities(logits)
    surprise = -np.log(np.where(likely > 0, likely, 1e-300))
    return _first_reaching(logits, np.argsort(np.abs(surprise - (likely * surprise).sum()), kind="stable"), p)


def min_p(logits: Array, p: float) -> Any:
    likely = probabilities(logits)
    return _only(logits, likely >= p * likely.max())


def xtc(logits: Array, threshold: float) -> Any:
    order = np.argsort(-logits, kind="stable")
    likely = probabilities(logits)[order]
    reaching = order[(likely >= threshold) & (likely > 0)]
    return _only(logits, np.setdiff1d(order, reaching[:-1]))


def temperature(logits: Array, t: float) -> Any:
    return np.asarray(logits, np.float64) / t


def mirostat(logits: Array, mu: float) -> Any:
    """`mu` in bits; after a draw, mu -= eta * (surprise of the token among those kept - tau)."""
    likely = probabilities(logits)
    return _only(logits, likely >= min(2.0 ** -max(mu, 0.0), likely.max()))


def penalize(
    logits: Array, prompt: list[int], answer: list[int], *, repetition: float, presence: float, frequency: float
) -> Any:
    """By tokens of the prompt and the answer so far."""
    result = np.array(logits, np.float64)
    for token in {*prompt, *answer}:
        result[token] = result[token] / repetition if result[token] > 0 else result[token] * repetition
    for token in set(answer):
        result[token] -= presence + frequency * answer.count(token)
    return result


def dry(
    logits: Array, text: list[int], *, multiplier: float, base: float, allowed_length: int, breakers: set[int]
) -> Any:
    """Every length is tried: where were that many tokens of the text's end before, and which token came after them?"""
    result = np.array(logits, np.float64)
    longest = dict[int, int]()
    for length in range(1, min(len(text), DRY_LONGEST + 1)):
        end = text[-length:]
        if not breakers & set(end):
            starts = [start for start in range(len(text) - length) if text[start : start + length] == end]
            longest |= {text[start + length]: length for start in starts}
    for token, length in longest.items():
        if length >= allowed_length and token not in breakers:
            result[token] -= multiplier * base ** (length - allowed_length)
    return result


def uniform(seed: int, draw: int) -> float:
    """The random number in [0, 1) of a draw: 24 bits by SplitMix64."""
    x = (seed + (draw + 1) * 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return float((x ^ x >> 31) >> 40) / 2**24


def draw(logits: Array, chance: float) -> int:
    """The token at which the sum of the probabilities, token after token, passes `chance`."""
    return int(np.searchsorted(np.cumsum(probabilities(logits)), chance, side="right"))
