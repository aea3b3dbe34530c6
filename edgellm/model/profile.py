"""Where a step's time goes: every operation timed, summed by kind, beside the bytes and products it stands for."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.memory.kv import KVCache, KVDtype, Sequence, kv_bytes_per_token
from edgellm.model.step import Rows, Stepper
from edgellm.packed import PackedModel

REPEATS = 10

WEIGHTS = {
    "q k v": ("attention.q", "attention.k", "attention.v"),
    "output": ("attention.output",),
    "gate up": ("ffn.gate", "ffn.up"),
    "down": ("ffn.down",),
}


@dataclass(frozen=True)
class OperationProfile:
    """A kind of operation in one step: medians over some repeats."""

    name: str
    count: int  # operations of the kind
    seconds: float  # all of them, each up to the last thread's end
    bytes: int  # of weights, keys and values that they read
    products: int  # multiply-adds of weights and of attention


def profile(stepper: Stepper, packed: PackedModel, cache: KVCache, rows: int, depth: int) -> list[OperationProfile]:
    """Time steps of `rows` rows, one with logits, behind `depth` positions. Errors: KVMemoryError."""
    sequence, vocabulary = Sequence(cache), packed.config.vocabulary
    draw = np.random.default_rng(0)
    sequence.reserve(depth + rows)
    try:
        while sequence.length < depth:
            count = min(stepper.max_rows, depth - sequence.length)
            stepper.run([Rows(sequence, draw.integers(0, vocabulary, count).tolist())])
        times = np.empty((REPEATS, len(stepper.operations)))
        for repeat in times:
            ticks = np.zeros(len(repeat) + 1, np.int64)
            begin = time.perf_counter()
            stepper.run([Rows(sequence, draw.integers(0, vocabulary, rows).tolist(), [rows - 1])], ticks)
            seconds = time.perf_counter() - begin
            # The clock's rate is not known everywhere; a step is all but some microseconds of the call.
            repeat[:] = np.diff(ticks) * (seconds / (ticks[-1] - ticks[0]))
            sequence.truncate(depth)
            sequence.reserve(depth + rows)
    finally:
        sequence.truncate(0)
    return _by_kind(stepper.operations, np.median(times, axis=0), packed, rows, depth, cache.dtype)


def _by_kind(
    operations: list[str],
    seconds: NDArray[np.float64],
    packed: PackedModel,
    rows: int,
    depth: int,
    dtype: KVDtype,
) -> list[OperationProfile]:
    result = []
    for name in dict.fromkeys(operations):
        which = [at for at, other in enumerate(operations) if other == name]
        size, products = _work(name, packed, rows, depth, dtype)
        result.append(OperationProfile(name, len(which), float(seconds[which].sum()), size, products))
    return result


def _work(name: str, packed: PackedModel, rows: int, depth: int, dtype: KVDtype) -> tuple[int, int]:
    """Bytes read and products made by all operations of a kind."""
    config = packed.config
    if name == "attend":
        positions = rows * depth + rows * (rows + 1) // 2
        return (depth + rows) * kv_bytes_per_token(
            config, dtype
        ), 2 * positions * config.layers * config.heads * config.head_size
    if name == "head":
        names, rows = ["embedding" if config.tied_head else "head"], 1
    else:
        names = [f"layers.{layer}.{part}" for layer in range(config.layers) for part in WEIGHTS.get(name, ())]
    weights = [packed.weights[weight] for weight in names]
    size = sum(w.codes.nbytes + w.scales.nbytes + (0 if w.mins is None else w.mins.nbytes) for w in weights)
    return size, rows * sum(w.rows * w.columns for w in weights)
