"""Where a step's time goes: every operation timed, summed by kind, beside the bytes and products it stands for."""

from dataclasses import dataclass

import numpy as np

from edgellm.backends.base import Rows, Runner, run_step
from edgellm.kernels.ops import KV_BLOCK
from edgellm.memory.sequence import Sequence
from edgellm.packed.read import PackedModel
from edgellm.runtime.graph import LayerState, Operation, Tensor

REPEATS = 10


@dataclass(frozen=True)
class OperationProfile:
    """A kind of operation in one step: medians over some repeats."""

    name: str
    count: int  # operations of the kind
    seconds: float  # all of them, each up to the last thread's end
    bytes: int  # of weights, keys and values that they read
    products: int  # multiply-adds of weights and of attention


def profile(runner: Runner, packed: PackedModel, rows: int, depth: int) -> list[OperationProfile]:
    """Time steps of `rows` rows, one with logits, after `depth` positions. Errors: KVMemoryError."""
    sequence = Sequence(runner.cache)
    vocabulary = packed.network.vocabulary
    draw = np.random.default_rng(0)
    try:
        while sequence.length < depth:
            count = min(runner.max_rows, depth - sequence.length)
            sequence.reserve(sequence.length + count)
            run_step(runner, [Rows(sequence, draw.integers(0, vocabulary, count).tolist())])
        times = np.empty((REPEATS, len(runner.operations)))
        for repeat in times:
            sequence.reserve(depth + rows)
            run_step(runner, [Rows(sequence, draw.integers(0, vocabulary, rows).tolist(), [rows - 1])], timed=True)
            repeat[:] = runner.seconds
            sequence.accept(0)
    finally:
        sequence.rewind(0)
    seconds_of = np.median(times, axis=0)
    result = []
    for label in dict.fromkeys(runner.operations):
        which = [at for at, other in enumerate(runner.operations) if other == label]
        work = [_work(runner.graph.operations[at], runner, packed, rows, depth) for at in which]
        size, products = (sum(column) for column in zip(*work, strict=True))
        result.append(OperationProfile(label, len(which), float(seconds_of[which].sum()), size, products))
    return result


def _work(op: Operation, runner: Runner, packed: PackedModel, rows: int, depth: int) -> tuple[int, int]:
    """Bytes read and products made by an operation."""
    if op.kind == "attend":
        state = op.operands["state"]
        assert isinstance(state, LayerState)
        layer = runner.cache.layout.layer(state.layer)
        token_bytes = layer.state.kv_heads * layer.head_stride // KV_BLOCK
        positions = rows * depth + rows * (rows + 1) // 2
        return (depth + rows) * token_bytes, 2 * positions * op.number("heads") * op.number("head_size")
    if op.kind == "product":
        named_weights = [operand for part in op.parts for operand in part.operands.values()]
        weights = [packed.weights[tensor.name] for tensor in named_weights if isinstance(tensor, Tensor)]
        counted = 1 if getattr(op.operands["x"], "is_selected", False) else rows
        return sum(w.nbytes for w in weights), counted * sum(w.rows * w.columns for w in weights)
    return 0, 0
