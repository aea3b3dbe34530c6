"""Outliers of activations, listed once an operation and added to its products token by token; tiles.py says why."""

from collections.abc import Callable
from typing import Any

import numpy as np

from edgellm.kernels.cpu.matmul.pieces import Pieces
from edgellm.kernels.ops import META_BYTES
from edgellm.kernels.panels import BLOCK
from edgellm.kernels.simd.arithmetic import fma
from edgellm.kernels.simd.kernel import kernel
from edgellm.kernels.simd.memory import (
    broadcast_f32,
    load_f32,
    load_f32x16,
    load_i8,
    load_i32,
    store_f32,
    store_f32x16,
    store_i32,
)

ENTRY_BYTES = 16  # of an outlier in a list


@kernel
def list_outliers(meta: int, blocks: int, tokens: int, rows: int, entries: int) -> int:
    """Note the outliers of the first `rows` of a tile of `tokens`, blocks ascending; returns how many.

    An entry is 16 bytes: float32 128 * high part * activation scale, int32 block, int32 index in it, int32 row * 128.
    """
    count = 0
    for block in range(blocks):
        at = meta + block * tokens * META_BYTES
        any_word = 0
        for t in range(rows):
            any_word |= load_i32(at + 16 * tokens + t * 4)
        if any_word:
            for t in range(rows):
                word = at + 16 * tokens + t * 4
                if load_i32(word):
                    place, entry = load_i32(at + 20 * tokens + t * 4), entries + count * ENTRY_BYTES
                    high_part = load_i8(word + (place & 3))
                    store_f32(entry, np.float32(128 * high_part) * load_f32(at + t * 4))
                    store_i32(entry + 4, block)
                    store_i32(entry + 8, place)
                    store_i32(entry + 12, t * 128)
                    count += 1
    return count


def make_add_outliers(pieces: Pieces) -> Callable[..., None]:
    """What the outliers of a tile add to its products with a panel."""
    code, scale, runs, run_inputs = pieces.code, pieces.scale, pieces.runs, BLOCK // pieces.runs

    @kernel
    def add_outliers(codes: int, at: Any, out: int, entries: int, count: int) -> None:
        """out float32 [tokens][32] += ..., for `count` entries of `list_outliers`."""
        for i in range(count):
            entry = entries + i * ENTRY_BYTES
            value, block, place = broadcast_f32(entry), load_i32(entry + 4), load_i32(entry + 8)
            run = block * runs + place // run_inputs
            for h in range(2):
                weight = code(codes, run, place % run_inputs, h) * scale(at, run, h)
                to = out + load_i32(entry + 12) + h * 64
                store_f32x16(to, fma(weight, value, load_f32x16(to)))

    made: Callable[..., None] = add_outliers
    return made
