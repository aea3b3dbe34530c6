"""Log-probabilities of the chosen and the likeliest tokens, as the model gave them: before any sampler."""

import numpy as np

from edgellm.kernels.cpu.math import log_scalar
from edgellm.kernels.cpu.sampling.candidates import KEYS, LOWEST, TOKENS, WEIGHTS, gather, heaviest, softmax_weights
from edgellm.kernels.cpu.sampling.truncate import contenders
from edgellm.kernels.ops import SAMPLER
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import (
    load_f32,
    load_f32x16,
    load_i32,
    load_i64,
    store_f32,
    store_f32x16,
    store_i32,
)

RAW, TOP_LOGPROBS, LOGPROBS = SAMPLER.raw, SAMPLER.top_logprobs, SAMPLER.logprobs
CHOSEN = SAMPLER.chosen


@kernel
def save_logits(sampler: int, logits: int, vocabulary: int) -> None:
    """Keep the logits as they are now, where logprobs are wanted."""
    raw = load_i64(sampler + RAW)
    if raw == 0:
        return
    for i in range(0, vocabulary, 16):
        store_f32x16(raw + i * 4, load_f32x16(logits + i * 4))


@kernel
def write_logprobs(sampler: int, vocabulary: int) -> None:
    """Of the token that was chosen, where they are wanted."""
    raw, out, count = load_i64(sampler + RAW), load_i64(sampler + LOGPROBS), load_i64(sampler + TOP_LOGPROBS)
    if raw == 0:
        return
    tokens, keys = load_i64(sampler + TOKENS), load_i64(sampler + KEYS)
    top = heaviest(raw, vocabulary)
    log_total = log_scalar(np.float32(softmax_weights(raw, vocabulary, load_i64(sampler + WEIGHTS))))
    store_f32(out, load_f32(raw + load_i64(sampler + CHOSEN) * 4) - top - log_total)
    if count == 0:
        return
    listed = contenders(sampler, raw, vocabulary, count)
    gather(sampler, raw, listed)
    for rank in range(count):
        best, where = LOWEST, -1
        for i in range(listed):
            if load_f32(keys + i * 4) > best:
                best, where = load_f32(keys + i * 4), i
        entry = out + 4 + rank * 8
        store_i32(entry, load_i32(tokens + where * 4) if where >= 0 else -1)
        store_f32(entry + 4, best - top - log_total)
        if where >= 0:
            store_f32(keys + where * 4, LOWEST)
